"""Twenty steps of every method on a tiny model give the losses that were recorded.

Record anew only from a clean tree and say why: LUTHIER_RECORD=1 is read here alone, never by the package.
"""

import json
import os
from pathlib import Path

import pytest

from training_parts import make_trainer, method_names, reads_of, rows_for

OPTIONS = {"gkd": {"max_new_tokens": 4}}
"""Few draws: one that falls the other way, because a processor rounds otherwise, changes all that follows."""
FOLDER = Path(__file__).resolve().parents[1] / "golden"


@pytest.mark.parametrize("method", method_names())
def test_twenty_steps_are_the_recorded_ones(method: str) -> None:
    trainer = make_trainer(
        rows_for(reads_of(method), 30), method=method, options=OPTIONS.get(method), steps=20
    )
    losses = [trainer.step(trainer.source.step(i)).values["loss"] for i in range(20)]
    file = FOLDER / f"{method}.json"
    if os.environ.get("LUTHIER_RECORD"):
        file.write_text(json.dumps(losses, indent=1) + "\n")
    assert losses == pytest.approx(json.loads(file.read_text()), rel=1e-4)

"""Metrics carry TRL's names: the table in docs/methods/metrics.md is true of the methods here and of TRL's source."""

import re
from pathlib import Path

import pytest

from luthier.data.batch import collate
from method_steps import rows_of, step_of
from training_parts import make_trainer

ROOT = Path(__file__).resolve().parents[2]
TRL = next(iter((ROOT / "bench" / ".venv-peers" / "lib").glob("python*/site-packages/trl")), None)
TRAINERS = {
    **{name: f"trainer/{name}_trainer.py" for name in ("sft", "dpo", "kto", "reward")},
    **{name: f"experimental/{name}/{name}_trainer.py" for name in ("cpo", "orpo", "tpo")},
}
LINE = re.compile(
    r"^\| (\w+) \| (\w+) \| ([\w/]+) \| (yes|token_metrics|routers|no) \| (.*)\|$", re.MULTILINE
)
BY_THE_LOOP = {"num_tokens"}


def table() -> list[tuple[str, str, str, str, str]]:
    return LINE.findall((ROOT / "docs" / "methods" / "metrics.md").read_text(encoding="utf-8"))


def told_by(method: str, options: dict[str, bool]) -> set[str]:
    values, _ = step_of((method, options), [collate(rows_of((method, options)))])
    return set(values)


@pytest.mark.parametrize("method", sorted({row[1] for row in table()}))
def test_what_the_table_promises_is_told(method: str) -> None:
    rows = [row for row in table() if row[1] == method]
    promised = {name for _, _, name, told, _ in rows if told == "yes"} - BY_THE_LOOP
    asked = {name for _, _, name, told, _ in rows if told == "token_metrics"}
    plain = told_by(method, {})
    # of a single batch extremes are told by the loop
    trainer = make_trainer(method=method, steps=1)
    plain |= set(trainer.step(trainer.source.step(0)).values)
    assert promised <= plain and not asked & plain
    if asked:
        assert asked <= told_by(method, {"token_metrics": True})
    assert all(reason.strip() for *_, told, reason in rows if told == "no")


@pytest.mark.skipif(TRL is None, reason="TRL is in the peers' venv, which is not here")
@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_name_that_trl_has_is_in_the_table(trainer: str) -> None:
    assert TRL is not None
    source = (TRL / TRAINERS[trainer]).read_text(encoding="utf-8")
    found = re.findall(r"""metrics\[(?:mode\]\[)?f?"(?:\{prefix\}|eval_)?([\w/]+)"\]""", source)
    listed = {name for theirs, _, name, _, _ in table() if theirs == trainer}
    assert set(found) - {"train", "eval"} == listed

"""A reference that is made once and kept trains as one that is asked in every step, and nothing stale is believed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.data import cache
from luthier.data.known import WithGiven, survey
from luthier.data.loader import StepSource
from luthier.models.lora import apply_lora
from luthier.models.policy import Policy
from luthier.models.reference import GIVEN, Known
from luthier.models.tripwire import choose_policy
from luthier.models.weights_key import weights_key
from luthier.parallel.cluster import Cluster
from luthier.training.asked import ReferenceLogprobs
from luthier.training.known_values import KnownValues
from method_rows import judged_rows
from tiny_models import tiny_llama
from training_parts import Rows, chat_rows, make_trainer, rows_for, trained_weights


def policy_of(rank: int | None = None, seed: int = 1) -> Policy:
    policy = choose_policy(tiny_llama()).policy
    if rank is not None:
        apply_lora(policy.model, rank=rank, generator=torch.Generator().manual_seed(seed))
    return policy


def known_of(policy: Policy, rows: Any, folder: Path, said: list[str] | None = None) -> WithGiven:
    say: Callable[[str], None] = (said if said is not None else []).append
    return KnownValues(ReferenceLogprobs(policy), Cluster(), say, folder)(rows)


@pytest.mark.parametrize("variant", [("dpo", {}), ("dpo", {"loss_type": "aot"}), ("kto", {})], ids=str)
@pytest.mark.parametrize("lora", [True, False])
def test_it_trains_as_the_live_one(variant: tuple[str, dict[str, Any]], lora: bool, tmp_path: Path) -> None:
    method, options = variant
    lr = 1e-2 if lora else 1e-3
    live = make_trainer(
        rows_for("pair" if method == "dpo" else "label"), method=method, options=options, lora=lora, lr=lr
    )
    told = make_trainer(
        rows_for("pair" if method == "dpo" else "label"), method=method, options=options, lora=lora, lr=lr
    )
    assert isinstance(told.source, StepSource)
    told.source.dataset = known_of(told.policy, told.source.dataset, tmp_path)
    told.learner.reference = told.learner.scorer.reference = Known()
    for step in range(8):
        one, two = (t.step(t.source.step(step)).values for t in (live, told))
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    for weight, other in zip(trained_weights(live).values(), trained_weights(told).values(), strict=True):
        assert float((weight - other).norm()) <= 1e-4 * float(weight.norm()) + 1e-6


def test_what_is_kept_is_checked_and_taken(tmp_path: Path) -> None:
    rows, said = Rows(judged_rows("pair", 40)), list[str]()
    policy = policy_of(4)
    first = known_of(policy, rows, tmp_path, said)
    assert "asked about 40 rows" in said[-1]
    again = known_of(policy_of(8, seed=5), rows, tmp_path, said)  # an adapter that changes nothing yet
    assert np.array_equal(first.values, again.values) and "taken from disk" in said[-1]
    live = torch.cat([policy(collated(first, i)).detach() for i in range(40)])
    np.testing.assert_allclose(first.values, live.numpy(), atol=1e-5)


def collated(rows: Any, index: int) -> Any:
    from luthier.data.batch import collate

    return collate([rows.example(index)])


def test_numbers_that_do_not_agree_are_not_believed(tmp_path: Path) -> None:
    rows, said = Rows(judged_rows("pair", 8)), list[str]()
    truth = np.array(known_of(policy_of(), rows, tmp_path).values)
    (entry,) = tmp_path.iterdir()
    wrong = truth.copy()
    wrong[-1] += 0.01
    maker = KnownValues(ReferenceLogprobs(policy_of()), Cluster(), said.append, tmp_path)
    import shutil

    shutil.rmtree(entry)
    with cache.new_entry(entry, {}) as made:  # whole, under the right name, and wrong
        np.save(made / "values.npy", wrong)
    found = maker(rows)
    assert np.array_equal(found.values, truth) and any("not believed" in line for line in said)
    assert np.array_equal(known_of(policy_of(), rows, tmp_path, said).values, truth)
    assert "taken from disk" in said[-1]


def test_a_file_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    rows, said = Rows(judged_rows("pair", 8)), list[str]()
    truth = np.array(known_of(policy_of(), rows, tmp_path).values)
    (entry,) = tmp_path.iterdir()
    content = (entry / "values.npy").read_bytes()
    (entry / "values.npy").write_bytes(content[:-4])
    assert np.array_equal(known_of(policy_of(), rows, tmp_path, said).values, truth)
    assert "asked about" in said[-1]


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.training.known_values.PACK_TOKENS", 32)
    monkeypatch.setattr("luthier.training.known_values.LEAST_PACKS", 2)
    rows, whole = (
        Rows(judged_rows("pair", 40)),
        known_of(policy_of(), Rows(judged_rows("pair", 40)), tmp_path / "whole"),
    )
    made = KnownValues._values
    calls, said = list[int](), list[str]()

    def stop_at_four(self: KnownValues, dataset: Any, packs: Any) -> Any:
        calls.append(len(packs))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return made(self, dataset, packs)

    with monkeypatch.context() as patch:
        patch.setattr(KnownValues, "_values", stop_at_four)
        with pytest.raises(KeyboardInterrupt):
            known_of(policy_of(), rows, tmp_path / "stopped")
        first = len(calls)
        found = known_of(policy_of(), rows, tmp_path / "stopped", said)
    assert any("3 of" in line for line in said) and any("taken from disk" in line for line in said)
    assert np.array_equal(found.values, whole.values)
    (left,) = (tmp_path / "stopped").iterdir()
    assert left.name == next((tmp_path / "whole").iterdir()).name and first == 4


def test_the_name_says_what_the_numbers_depend_on() -> None:
    keys = {weights_key(policy_of()), weights_key(policy_of(4)), weights_key(policy_of(8, seed=3))}
    assert len(keys) == 1
    moved = policy_of(4)
    with torch.no_grad():
        next(p for n, p in moved.named_parameters() if n.endswith("lora_B")).add_(0.01)
    keys.add(weights_key(moved))
    changed = policy_of()
    with torch.no_grad():
        next(changed.parameters()).flatten()[0] += 1e-3
    keys.add(weights_key(changed))
    keys.add(weights_key(Policy(tiny_llama(), "rows")))
    keys.add(weights_key(choose_policy(tiny_llama(rms_norm_eps=1e-3)).policy))
    assert len(keys) == 5


def test_rows_are_known_by_their_predictions_alone() -> None:
    rows = judged_rows("label", 6)
    key, ends = survey(Rows(rows))
    assert ends.tolist() == np.cumsum([row.num_predictions for row in rows]).tolist()
    for row in rows:
        row.columns["label"] = 0.5
    assert survey(Rows(rows))[0] == key
    assert survey(Rows(rows[::-1]))[0] != key and survey(chat_rows(6))[0] != key
    rows[2].segments[1].weights[0] = 0
    assert survey(Rows(rows))[0] != key


def test_a_disk_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = list[str]()
    found = known_of(policy_of(), Rows(judged_rows("pair", 5)), tmp_path / "file", said)
    assert len(found.values) == found.ends[-1] and any("could not be kept" in line for line in said)
    assert GIVEN in found.example(0).given

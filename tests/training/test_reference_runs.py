"""Whole runs against each kind of reference, from the config to the last step."""

import json
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.data.batch import collate
from luthier.errors import ConfigError
from luthier.models.reference import Synchronised
from luthier.parallel.cluster import Cluster
from luthier.training.asked import ReferenceLogprobs
from luthier.training.known_values import KnownValues
from luthier.training.loop import Trainer
from method_rows import judged_rows
from method_steps import policy_of
from resuming import losses, resumes_exactly
from thread_ranks import on_ranks
from tiny_runs import WORDS, save_tiny_model, tiny_config
from training_parts import Rows, make_trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and pairs."""
    made = tmp_path_factory.mktemp("reference")
    save_tiny_model(made / "model")
    for name, num_rows in (("train", 24), ("test", 6)):
        rows = [
            {"prompt": WORDS[i % 7], "chosen": " ".join(WORDS[: 1 + i % 4]), "rejected": WORDS[-1 - i % 5]}
            for i in range(num_rows)
        ]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def run(folder: Path, tmp_path: Path, **changes: Any) -> tuple[float | None, list[str]]:
    said: list[str] = []
    changes = {
        "method": "dpo",
        "eval": {"every": None, "samples": 0},
        "checkpoint": {"every": None},
        **changes,
    }
    config = tiny_config(folder, **{"run": {"root": str(tmp_path)}, **changes})
    return luthier.train(config, say=said.append).eval_loss, said


def test_two_epochs_compute_it_once_and_the_next_run_takes_it_from_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = {"data": {"cache": True}, "lora": {"rank": 4, "dropout": 0.0}}
    first, said = run(folder, tmp_path / "one", **kept)
    assert sum("asked about" in line for line in said) == 2  # rows to learn from, and held-out ones
    again, said = run(folder, tmp_path / "two", **kept)
    assert sum("taken from disk" in line for line in said) == 2 and again == first
    live, said = run(folder, tmp_path / "three", **kept, reference={"precompute": False})
    assert not any("reference" in line for line in said) and live == pytest.approx(first, abs=1e-5)
    other, said = run(folder, tmp_path / "four", **kept, reference=str(folder / "model"))
    assert any("the reference is" in line for line in said) and other == pytest.approx(first, abs=1e-5)


def test_another_model_is_asked_in_each_step(folder: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "other", tied=False)
    own, _ = run(folder, tmp_path / "one", train={"epochs": 1})
    other, said = run(folder, tmp_path / "two", train={"epochs": 1}, reference=str(tmp_path / "other"))
    assert any("other in float32, for" in line for line in said)
    assert own is not None and other is not None and abs(other - own) > 1e-3


def test_a_model_with_other_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    words = json.loads(file.read_text())
    vocab = words["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(words))
    with pytest.raises(ConfigError, match=r"other tokens than model\.name .*: 2 ids differ"):
        run(folder, tmp_path / "run", reference=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "sft", "reference": {"precompute": True}}, "method sft compares with no reference"),
        (
            {"reference": {"precompute": True, "sync_every": 2}},
            r"reference\.precompute .* reference\.sync_every",
        ),
        ({"reference": {"name": "other", "sync_every": 2}}, r"reference\.name .* reference\.sync_every"),
        ({"reference": {"sync_every": 2, "sync_alpha": 0.5}}, "no adapter of their rank"),
        ({"reference": {"sync_alpha": 0.5}}, r"set reference\.sync_every"),
        ({"reference": {"dtype": "float32"}}, r"set reference\.name"),
    ],
)
def test_what_cannot_work_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run(folder, tmp_path, **changes)


def test_streams_say_that_nothing_is_computed_beforehand(folder: Path, tmp_path: Path) -> None:
    _, said = run(folder, tmp_path, data={"streaming": True, "workers": 0}, reference={"precompute": True})
    assert any("is not computed beforehand" in line for line in said)


@pytest.mark.parametrize(("lora", "alpha"), [(False, 0.6), (True, 1.0)])
def test_a_reference_that_moves_resumes_exactly(lora: bool, alpha: float, tmp_path: Path) -> None:
    def made() -> Trainer:
        trainer = make_trainer(method="dpo", lora=lora, lr=1e-2 if lora else 1e-3)
        moving = Synchronised(trainer.policy, every=2, alpha=alpha)
        trainer.learner.reference = trainer.learner.scorer.reference = moving
        return trainer

    _, whole = resumes_exactly(made, tmp_path / "run", 6)
    assert losses(make_trainer(method="dpo", lora=lora, lr=1e-2 if lora else 1e-3), range(6)) != whole


def test_ranks_share_the_work_and_know_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.training.known_values.PACK_TOKENS", 32)
    monkeypatch.setattr("luthier.training.known_values.LEAST_PACKS", 1)
    rows = Rows(judged_rows("pair", 20))
    for rank in range(3):
        policy_of(rank)

    def work(cluster: Cluster) -> Any:
        said: list[str] = []
        maker = KnownValues(
            ReferenceLogprobs(policy_of(cluster.rank)[0]),
            cluster,
            said.append,
            tmp_path / f"disk{cluster.rank}",
        )
        first, again = maker(rows), maker(rows)
        return first.values.tolist(), again.values.tolist(), said

    alone = KnownValues(ReferenceLogprobs(policy_of(0)[0]), Cluster(), lambda line: None, tmp_path / "alone")(
        rows
    )
    for first, again, said in on_ranks(3, work):
        assert first == again == alone.values.tolist() and "taken from disk" in said[-1]
    assert not (tmp_path / "disk1").exists()
    assert all(bool(collate([alone.example(i)]).given) for i in range(20))

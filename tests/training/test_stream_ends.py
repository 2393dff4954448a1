"""Where a run over a stream ends: by steps or epochs, with its last evaluation, and the same on every rank."""

from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.config.tree import Config
from luthier.data.stream import StreamSource
from luthier.errors import ConfigError, RunError
from luthier.parallel.cluster import Cluster
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import read_metrics, series
from luthier.training.checkpoint import check_seen, saved_steps
from tiny_runs import tiny_config

STREAM: dict[str, Any] = {"streaming": True, "window_rows": 9, "workers": 0}


def train(config: Config, **options: Any) -> Path:
    return luthier.train(config, say=lambda text: None, **options).folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ends")


def test_a_finished_stream_is_trained_longer_by_more_steps(folder: Path) -> None:
    train(tiny_config(folder, "longer", data=STREAM, train={"steps": 3}))
    run = train(
        tiny_config(folder, "longer", data=STREAM, train={"steps": 5}), resume=True, allow_changes=True
    )
    assert RunFolder.open(run).status().step == 5


def test_the_last_step_is_evaluated_although_more_were_expected(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = StreamSource.ready

    def one_too_many(self: StreamSource, total_steps: int) -> int:
        known = ready(self, total_steps)
        return known + 1 if self._has_packs() else known

    monkeypatch.setattr(StreamSource, "ready", one_too_many)
    run = train(tiny_config(folder, "expected", data=STREAM, eval={"every": None, "samples": 0}))
    steps = [step for step, _ in series(read_metrics(run / "metrics.jsonl"), "eval", "loss")]
    assert steps == [RunFolder.open(run).status().step]


def test_a_method_that_needs_all_rows_is_told_what_chooses_them_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.methods.sft import SFT

    monkeypatch.setattr(SFT, "arrange", lambda self, dataset, most_tokens=None: dataset)
    sets = [{"path": str(folder / "train.jsonl"), "repeat": 2}]
    with pytest.raises(ConfigError, match=r"data set's rows or repeat") as caught:
        train(tiny_config(folder, "repeated", data={"path": None, "sets": sets, "streaming": False}))
    assert "streaming: false" not in str(caught.value)


class TwoRanks(Cluster):
    """This process, and another one that says `other` whenever all are asked."""

    def __init__(self, rank: int, other: Any):
        self.rank, self.world, self.other = rank, 2, other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other] if self.rank == 0 else [self.other, value]


def test_ranks_go_by_the_checkpoints_that_the_main_one_sees(tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path), "run", config_yaml="")
    assert saved_steps(run, TwoRanks(1, [3, 6])) == [3, 6]
    assert saved_steps(run, TwoRanks(0, [3, 6])) == []
    for rank in (0, 1):
        with pytest.raises(RunError, match=rf"is not seen by rank {1 - rank}.*run\.root"):
            check_seen(tmp_path, TwoRanks(rank, False))
        check_seen(tmp_path, TwoRanks(rank, True))

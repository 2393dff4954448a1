"""One process as a cluster, and starting several."""

import sys

import pytest
import torch

from luthier.errors import ConfigError
from luthier.parallel.cluster import Cluster, DataParallel, join_cluster
from luthier.parallel.launch import is_worker, relaunch


def test_one_process_is_a_cluster_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cluster = join_cluster("cpu")
    assert type(cluster) is Cluster and cluster.is_main and cluster.world == 1
    assert cluster.sum([1.5, 2]) == [1.5, 2] and cluster.gather("x") == ["x"]
    gradient = torch.ones(2)
    cluster.sum_in_place([gradient])
    assert gradient.tolist() == [1, 1]


def test_small_tensors_travel_together_and_large_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def all_reduce(tensor: torch.Tensor) -> None:  # as if another process had the same
        sent.append(tensor.numel())
        tensor.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr("luthier.parallel.cluster.BUCKET_ELEMENTS", 10)
    tensors = [torch.ones(size) for size in (4, 3, 12, 5, 2)]
    tensors += [torch.ones(3, 4).T, torch.ones(2, dtype=torch.bfloat16)]
    expected = [2 * tensor for tensor in tensors]
    DataParallel.sum_in_place(object.__new__(DataParallel), tensors)
    assert sent == [12, 12, 12, 4]  # 12 on its own, 4 + 3 + 5, the strided one, 2 + 2
    assert all(torch.equal(one, two) for one, two in zip(tensors, expected, strict=True))


def test_more_gpus_than_there_are_is_refused() -> None:
    found = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=rf"--gpus is {found + 1}, but this machine has {found}.*torchrun"):
        relaunch(found + 1, ["train", "run.yaml"])


def test_relaunch_hands_the_command_to_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    seen: list[object] = []
    monkeypatch.setattr("os.execv", lambda *arguments: seen.extend(arguments))
    relaunch(2, ["train", "run.yaml"])
    assert seen[0] == sys.executable and seen[1][1:] == [  # pyright: ignore[reportIndexIssue]
        *(
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "luthier",
            "train",
            "run.yaml",
        )
    ]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert is_worker()

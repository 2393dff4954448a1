"""What a run must ask of the processes it is spread over. One process is the simplest cluster.

Only `RANK`, `WORLD_SIZE`, `LOCAL_RANK` and `MASTER_*` are read, so torchrun, Slurm and others can all start it.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Ranks wait for the main one while it reads data or answers prompts, however long that takes; a rank that dies
# is the launcher's to notice.
WAIT = timedelta(days=2)
BUCKET_ELEMENTS = 32 * 1024 * 1024  # gradients sent in one message: few launches, little extra memory


class Cluster:
    """A single process. Also the interface that others extend."""

    rank = 0
    world = 1
    local_rank = 0

    @property
    def is_main(self) -> bool:
        """Whether this process does what must be done once: files, progress, evaluation output."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in fp64 on the CPU."""
        return list(values)

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, which must call this with tensors of equal shapes."""

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, on every process."""
        return [value]

    def barrier(self) -> None:
        """Waits for all processes."""

    def close(self) -> None:
        """Leaves the group of processes."""


class DataParallel(Cluster):
    """Each process holds the whole model and learns from its share of every step (DDP).

    Gradients are summed once a step, in few messages, after the last micro-batch: processes may have different
    numbers of micro-batches, even none.
    """

    def __init__(self, rank: int, world: int, local_rank: int, backend: str, timeout: timedelta):
        self.rank, self.world, self.local_rank = rank, world, local_rank
        dist.init_process_group(backend, timeout=timeout)
        # counts and Python objects travel over a CPU group, so that no GPU has to wait for them
        self._cpu = dist.new_group(backend="gloo", timeout=timeout) if backend != "gloo" else None

    def sum(self, values: Sequence[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._cpu)
        return total.tolist()

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        bucket: list[Tensor] = []
        size = 0
        for tensor in tensors:
            if tensor.numel() >= BUCKET_ELEMENTS:
                _sum_bucket([tensor])
                continue
            bucket.append(tensor)
            size += tensor.numel()
            if size >= BUCKET_ELEMENTS:
                _sum_bucket(bucket)
                bucket, size = [], 0
        if bucket:
            _sum_bucket(bucket)

    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._cpu)
        return values

    def barrier(self) -> None:
        self.sum([0.0])

    def close(self) -> None:
        dist.destroy_process_group()


def _sum_bucket(tensors: list[Tensor]) -> None:
    """Sums over all processes in one message, in fp32. A tensor on its own needs no copy."""
    if len(tensors) == 1 and tensors[0].is_contiguous() and tensors[0].dtype == torch.float32:
        dist.all_reduce(tensors[0])
        return
    flat = torch.cat([tensor.flatten().float() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def join_cluster(device_type: str, timeout: timedelta = WAIT) -> Cluster:
    """The cluster that this process was started in, by what the launcher put in the environment."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Cluster()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device_type == "cuda":
        torch.cuda.set_device(local_rank)
    backend = "nccl" if device_type == "cuda" else "gloo"
    return DataParallel(int(os.environ["RANK"]), world, local_rank, backend, timeout)

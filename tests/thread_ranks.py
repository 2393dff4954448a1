"""Several ranks that are threads of one process: what a cluster does, without starting one."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.parallel.cluster import Cluster


class Thread(Cluster):
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier):
        self.rank, self.world, self.board, self.meet = rank, len(board), board, barrier

    def gather(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.meet.wait()
        values = list(self.board)
        self.meet.wait()
        return values

    def sum(self, values: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        everyone = self.gather([tensor.clone() for tensor in tensors])
        for index, tensor in enumerate(tensors):
            tensor.copy_(torch.stack([rank[index] for rank in everyone]).sum(0))

    def barrier(self) -> None:
        self.meet.wait()


def on_ranks(world: int, work: Callable[[Cluster], Any]) -> list[Any]:
    """What `work` returns on each rank."""
    board, barrier, results = [None] * world, threading.Barrier(world, timeout=60), [None] * world

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(rank, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results

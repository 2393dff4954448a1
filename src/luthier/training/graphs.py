"""The same micro-batch over and over: forward and backward through buffers that never move.

A GPU step on short documents waits for the CPU to launch some ten thousand kernels. Where every micro-batch has
one shape (data/shapes.py), the launches are recorded once as a CUDA graph and replayed: the next micro-batch is
copied over the last one, and gradients add up where they always lie (optim/gradients.py).

What is recorded must not depend on the contents of a batch: no `.item()`, no Python loop over segments.

`Replay` keeps to the same buffers without a graph, on any device; it is what the graph is tested against.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from luthier.data.batch import Batch

Compute = Callable[[Batch], None]
WARM_UP = 3  # runs before recording: libraries choose algorithms and take their workspaces in the first ones
MOST_GRAPHS = 4  # each holds the working memory of a micro-batch


class Replay:
    """`compute` on one micro-batch after another, all of one shape, each copied into the same tensors.

    Args:
        compute: forward and backward; leaves its results in tensors that stay where they are.
        example: any batch of the shape.
    """

    def __init__(self, compute: Compute, example: Batch, device: torch.device):
        self.compute = compute
        self.batch = _fixed(example, device)

    def __call__(self, batch: Batch) -> None:
        """Runs `compute` on these contents."""
        for name, tensor in _tensors(self.batch).items():
            tensor.copy_(_tensors(batch)[name], non_blocking=True)
        self.run()

    def run(self) -> None:
        """Runs it on what is in the buffers."""
        self.compute(self.batch)


class GraphReplay(Replay):
    """The same, recorded once as a CUDA graph. Not measured yet: written without a GPU at hand.

    Recording runs `compute` a few times, so its results must be cleared afterwards.
    """

    def __init__(self, compute: Compute, example: Batch, device: torch.device):
        super().__init__(compute, example, device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                compute(self.batch)
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # on the stream of the warm-up, where autograd has put its accumulation of gradients
        with torch.cuda.graph(self.graph, stream=stream):
            compute(self.batch)

    def run(self) -> None:
        self.graph.replay()


class MicroBatches:
    """Runs the micro-batches of a step: as they come, or replayed.

    Args:
        compute: forward and backward of one micro-batch; adds to gradients and totals.
        device: where it computes.
    """

    def __init__(self, compute: Compute, device: torch.device):
        self.compute, self.device = compute, device
        self.replays: dict[tuple[object, ...], Replay] = {}
        self.make: Callable[[Compute, Batch, torch.device], Replay] | None = None
        self.clear: Callable[[], None] = lambda: None
        self.say: Callable[[str], None] = print

    def replay(self, clear: Callable[[], None], say: Callable[[str], None]) -> None:
        """Replays from now on: as a CUDA graph on a GPU, through fixed buffers elsewhere.

        `clear` sets gradients and totals to zero, in place. `say` is told if it cannot be done.
        """
        self.make = GraphReplay if self.device.type == "cuda" else Replay
        self.clear, self.say = clear, say

    def __call__(self, batches: Sequence[Batch]) -> None:
        """Runs them all. Gradients and totals must be zero before."""
        self._prepare(batches)
        for batch in batches:
            replay = self.replays.get(_shape(batch))
            if replay is not None:
                replay(batch)
            else:
                self.compute(batch.to(self.device))

    def _prepare(self, batches: Sequence[Batch]) -> None:
        """Records what has not been seen, before the step has any gradients that a recording could spoil."""
        for batch in batches:
            if self.make is None or _shape(batch) in self.replays or len(self.replays) >= MOST_GRAPHS:
                continue
            cpu = torch.get_rng_state()
            cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
            try:
                self.replays[_shape(batch)] = self.make(self.compute, batch, self.device)
            except (
                Exception
            ) as error:  # whatever the model does that cannot be recorded; it then runs as it is
                self.make = None
                reason = str(error).partition("\n")[0]
                self.say(f"micro-batches are not replayed ({type(error).__name__}: {reason})")
            finally:
                torch.set_rng_state(cpu)
                if cuda is not None:
                    torch.cuda.set_rng_state(cuda, self.device)
                self.clear()


def _tensors(batch: Batch) -> dict[str, Tensor]:
    """Every tensor of a batch by name."""
    named = {f.name: getattr(batch, f.name) for f in fields(batch)}
    found = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    found |= {f"given.{name}": value for name, value in batch.given.items()}
    return found | {f"columns.{name}": column for name, column in batch.columns.items()}


def _shape(batch: Batch) -> tuple[object, ...]:
    """What two batches must have in common to go through the same buffers."""
    return batch.longest, *((n, t.shape, t.dtype) for n, t in sorted(_tensors(batch).items()))


def _fixed(batch: Batch, device: torch.device) -> Batch:
    """A copy of the batch to overwrite. On a GPU the segments, too, lie there, as kernels read them."""
    copied = {name: t.to(device, copy=True) for name, t in _tensors(batch).items() if "." not in name}
    columns = {name: column.to(device, copy=True) for name, column in batch.columns.items()}
    given = {name: value.to(device, copy=True) for name, value in batch.given.items()}
    return replace(batch, columns=columns, given=given, **copied)

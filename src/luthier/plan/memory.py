"""How much memory training takes, as a sum of a few terms. All sizes are bytes.

    peak = weights + trained + max(step, update)
    step = kept activations + one layer made again + buffers + stream + head

`Sizes` are the terms of a model under given settings, `peak_of` adds them up for a number of tokens. Who finds the
sizes (training/sketch.py) asks those that will do the work: schemes of quantisation, optimizers, layers. What cannot be
asked stands here as a constant with the reason for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

STREAM = 9
"""Tensors of [tokens, hidden size] that lie beside the layers at the peak: embeddings, the last norm with what it
saves in fp32, hidden states of the predictions with their gradient, and a gradient on its way through a layer."""
GPU_CONTEXT = 600 << 20
"""What CUDA and its libraries hold on a GPU before a tensor is there; not part of any tensor."""


@dataclass(frozen=True)
class Kept:
    """What one layer keeps of a token."""

    now: int
    """From its forward to its backward pass, as planned."""
    whole: int
    """All of it, which is there while the layer itself runs backward."""


@dataclass(frozen=True)
class Sizes:
    """The terms."""

    num_weights: int
    """Weights of the base, stored ones included. A number, not a size."""
    stored: int = 0
    """Weights in few bits."""
    frozen: int = 0
    """Weights that are neither stored nor trained, with room for adapters in the tails of their buffers."""
    decoded: int = 0
    """The buffers that weights in few bits are decoded into."""
    trained: int = 0
    """Trained weights; of adapters the masters."""
    gradients: int = 0
    """Their gradients in fp32."""
    states: int = 0
    """What the optimizer keeps: moments, masters of 16-bit weights, averages."""
    update: int = 0
    """What one update takes for a moment."""
    fresh: int = 0
    """Gradients that lie beside `gradients` before they are added to them."""
    kept: Sequence[Kept] = ()
    """Of each layer from first to last, per token."""
    buffers: int = 0
    """Per token: what lives only inside of a layer; shared by all."""
    hidden: int = 0
    """Per token: one row of hidden states."""
    logit: int = 0
    """Per prediction: its logits."""
    most_predictions: int = 1
    """Predictions whose logits are there at once."""
    loading: int = 0
    """What is there for a moment beside the weights while they are read."""
    context: int = 0
    """What the device holds before a tensor is there."""


@dataclass(frozen=True)
class Peak:
    """The most that is held at once, and what of."""

    parts: dict[str, int] = field(default_factory=dict)
    loading: int = 0
    """The most while weights are read."""

    @property
    def total(self) -> int:
        """The sum of the parts, or what loading takes if that is more."""
        return max(sum(self.parts.values()), self.loading)


def peak_of(sizes: Sizes, tokens: int, predictions: int | None = None) -> Peak:
    """The most that a step holds whose micro-batches have so many tokens (and predictions; absent: as many)."""
    predictions = tokens if predictions is None else predictions
    weights = sizes.stored + sizes.frozen
    kept, again = kept_at_peak(sizes.kept)
    head = min(predictions, sizes.most_predictions) * sizes.logit
    work = {
        "kept activations": tokens * kept,
        "one layer made again": tokens * again,
        "buffers of a layer": tokens * sizes.buffers,
        "stream beside the layers": tokens * STREAM * sizes.hidden,
        "a chunk of logits": head,
        "gradients on their way": sizes.fresh,
    }
    if sizes.update > sum(work.values()):
        work = {"the update": sizes.update}
    parts = {
        "weights in few bits": sizes.stored,
        "other frozen weights": sizes.frozen,
        "decoded weights": sizes.decoded,
        "trained weights": sizes.trained,
        "gradients": sizes.gradients,
        "optimizer": sizes.states,
        **work,
        "device context": sizes.context,
    }
    loading = weights + sizes.trained + sizes.loading + sizes.context
    return Peak({name: size for name, size in parts.items() if size}, loading)


def kept_at_peak(layers: Sequence[Kept]) -> tuple[int, int]:
    """Per token: what all layers keep at the peak, and what the layer in flight then holds beyond that.

    Layers run backward from last to first. One that keeps less than all makes the rest again, on top of what those
    below it keep.
    """
    peak, below = (0, 0), 0
    for layer in layers:
        candidate = (below + layer.now, layer.whole - layer.now)
        peak = max(peak, candidate, key=sum)
        below += layer.now
    return max(peak, (below, 0), key=sum)

"""A model's own forward in fp32 on the 16-bit weights that it has: the truth that rounding is measured from.

A whole model in fp32 would take twice its memory once more, so each layer is widened only while it computes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def widened(model: PreTrainedModel) -> Iterator[None]:
    """While it holds, the model's forward computes in fp32 behind the embedding. Afterwards its weights are what and
    where they were.

    For models with `layers`, a `norm` behind them and a head, whose layers compute in the dtype of what comes in.
    """
    base: Any = model.base_model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, nn.Module) and isinstance(head, nn.Module)
    with ExitStack() as stack:
        handle = embedding.register_forward_hook(lambda module, given, output: output.float())
        stack.callback(handle.remove)
        for part in (*base.layers, base.norm, head):
            _widen_while_computing(part, stack)
        yield


def _widen_while_computing(part: nn.Module, stack: ExitStack) -> None:
    narrow: list[tuple[Tensor, Tensor]] = []

    def widen(module: nn.Module, given: Any) -> None:
        for tensor in chain(module.parameters(), module.buffers()):
            if tensor.is_floating_point() and tensor.itemsize == 2:
                narrow.append((tensor, tensor.data))
                tensor.data = tensor.data.float()

    def restore(*_: Any) -> None:
        for tensor, data in narrow:
            tensor.data = data
        narrow.clear()

    stack.callback(restore)
    stack.callback(part.register_forward_pre_hook(widen).remove)
    stack.callback(part.register_forward_hook(restore, always_call=True).remove)


@torch.no_grad()
def logits_in_fp32(model: PreTrainedModel, texts: list[Tensor]) -> list[Tensor]:
    """The logits of each text, [T, V] each."""
    with widened(model):
        return [model(input_ids=text[None], use_cache=False).logits[0] for text in texts]

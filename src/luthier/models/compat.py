"""The one place that knows how transformers wires attention, and what changes between its versions."""

import io
import logging as python_logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils import logging

from luthier.kernels.attention import AttentionRule, Forest, forest_attention
from luthier.models.states_first import StatesFirst, attend_behind

FOREST = "luthier_forest"
"""Name under which transformers' attention interface finds Luthier's attention. Because no mask builder is
registered under it, transformers builds no [T, T] mask either."""


@torch.compiler.disable  # a compiled layer must not be made anew for every forest
def attend_forest(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    forest: Forest | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature around `forest_attention`; one stream, [1, heads, T, size] each."""
    if forest is None or query.shape[0] != 1:
        raise ValueError("this model does not hand the forest of segments on to its attention layers")
    if attention_mask is not None or unused.get("position_bias") is not None:
        raise ValueError("this model adds a mask or a bias of its own to its attention scores")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    rule = AttentionRule(scale, sliding_window, softcap, dropout if module.training else 0.0)
    if isinstance(forest, StatesFirst):
        layer = int(module.layer_idx)  # pyright: ignore[reportArgumentType]
        return attend_behind(layer, query[0], key[0], value[0], forest, rule, s_aux)[None], None
    return forest_attention(query[0], key[0], value[0], forest, rule, s_aux)[None], None


def use_forest_attention(model: PreTrainedModel) -> None:
    """Lets this one model attend over segments. The registration is transformers' own extension point."""
    AttentionInterface.register(FOREST, attend_forest)
    model.set_attn_implementation(FOREST)


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Gives the model transformers' own attention for a while: for caches, padding and comparisons."""
    was_ours = model.config._attn_implementation == FOREST
    use_plain_attention(model)
    try:
        yield
    finally:
        if was_ours:
            model.set_attn_implementation(FOREST)


def use_plain_attention(model: PreTrainedModel) -> None:
    """Takes Luthier's attention off the model again, if it has it."""
    if model.config._attn_implementation == FOREST:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Keeps transformers' progress bars out of log files and pipes, those that its own switch does not reach, too."""
    if sys.stderr.isatty():
        yield
        return
    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        with redirect_stderr(_WithoutBars(sys.stderr)):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


class _WithoutBars(io.TextIOBase):
    """A stream that lets all through but bars: what begins by going back to the line's beginning, and the end of that
    line. The bar of transformers' GGUF reader comes from tqdm itself and asks nobody."""

    def __init__(self, stream: TextIO):
        self._stream, self._in_bar = stream, False

    def write(self, text: str, /) -> int:
        """Passes a text on, if it is none of a bar."""
        bar = text.startswith("\r") or (self._in_bar and text == "\n")
        self._in_bar = bar and text != "\n"
        return len(text) if bar else self._stream.write(text)

    def flush(self) -> None:
        """Of the stream."""
        self._stream.flush()

    def fileno(self) -> int:
        """Of the stream."""
        return self._stream.fileno()


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keeps transformers from telling which weights a model has and the file lacks, for callers that judge it.

    If loading fails, the report is told after all, as the error speaks of it.
    """
    logger, reports = logging.get_logger("transformers.modeling_utils"), _Reports()
    logger.addFilter(reports)
    try:
        yield
    except Exception:
        logger.removeFilter(reports)
        for record in reports.kept:
            logger.handle(record)
        raise
    finally:
        logger.removeFilter(reports)


class _Reports(python_logging.Filter):
    """Holds back what is told about weights that were loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[python_logging.LogRecord] = []

    def filter(self, record: python_logging.LogRecord) -> bool:
        if "LOAD REPORT" not in record.getMessage():
            return True
        self.kept.append(record)
        return False

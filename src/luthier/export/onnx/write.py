"""A model folder as an ONNX graph, with keys and values of earlier tokens as inputs and outputs.

transformers traces the model and turns it into ONNX. Its names become those that Optimum gave such graphs, which
programs for ONNX expect:

    input_ids [B, T], attention_mask [B, P + T], position_ids [B, T], past_key_values.N.key and .value [B, K, P, D]
    -> logits [B, T, V], present.N.key and .value [B, K, P + T, D]

B rows, T tokens and P earlier ones (none at first) may be any number.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from luthier.errors import ModelError
from luthier.export.described import copy_described
from luthier.models.load import load_model
from luthier.runs.atomic import check_room

NEEDED = "the packages onnx, onnxscript and onnxruntime: pip install 'luthier[onnx]'"
GRAPH, WEIGHTS = "model.onnx", "model.onnx_data"
CHANGING = ("dynamic", "longrope")
"""Rotary embeddings that are others for longer texts: the graph would keep those of the text it was traced with."""
ROWS, TOKENS, EARLIER = 2, 4, 19
"""Of the trace; no two alike, and none 1, which torch takes for a size that stays."""


def installed(*names: str) -> bool:
    """Whether these packages are there."""
    return all(find_spec(name) is not None for name in names or ("onnx", "onnxscript"))


def write_onnx(folder: Path, out: Path) -> None:
    """Fills `out` with the model in `folder` in 32 bits, its tokenizer, template and configuration.

    Raises:
        ModelError: a package is missing, or the model cannot become a graph.
        RunError: the disk cannot take it.
    """
    if not installed():
        raise ModelError(f"writing ONNX needs {NEEDED}.")
    model = load_model(folder, torch.float32, torch.device("cpu")).requires_grad_(False)
    config: Any = model.config.get_text_config()
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    if kind in CHANGING:
        raise ModelError(
            f"this model's rotary embeddings ({kind}) are others for longer texts, which an ONNX graph cannot be. Take "
            "another form."
        )
    check_room(out, 4 * sum(weight.numel() for weight in model.parameters()))
    graph = _graph(model)
    import onnx_ir  # pyright: ignore[reportMissingImports]

    onnx_ir.save(graph, str(out / GRAPH), external_data=WEIGHTS)
    copy_described(folder, out)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told.pop("torch_dtype", None)
    text = json.dumps({**told, "dtype": "float32"}, indent=2)
    (out / "config.json").write_text(text + "\n", encoding="utf-8")


def _graph(model: PreTrainedModel) -> Any:
    """The graph with its weights. Raises ModelError if there is none for such a model."""
    try:
        from transformers.exporters.base import ExportedModel  # noqa: F401
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter
    except ImportError as error:
        raise ModelError(
            "writing ONNX needs transformers 5.23 or newer: pip install -U 'luthier[onnx]'."
        ) from error
    any_size = torch.export.Dim.AUTO
    earlier = DynamicCache()  # not the model's own: all keys are kept, and masks say which are seen
    ids = torch.arange(ROWS * EARLIER).view(ROWS, EARLIER) % 7
    with torch.no_grad():
        model(input_ids=ids, past_key_values=earlier, use_cache=True)
    given = {
        "input_ids": ids[:, :TOKENS],
        "attention_mask": torch.ones(ROWS, EARLIER + TOKENS, dtype=torch.long),
        "position_ids": torch.arange(EARLIER, EARLIER + TOKENS).repeat(ROWS, 1),
        "past_key_values": earlier,
    }
    both = {0: any_size, 1: any_size}
    shapes: dict[str, Any] = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), both)
    shapes["past_key_values"] = [{0: any_size, 2: any_size}] * (2 * len(earlier.layers))
    try:
        with _quiet():
            graph: Any = OnnxExporter().export(model, given, OnnxConfig(dynamic_shapes=shapes)).program
    except Exception as error:  # whatever torch or a model's code raises while it is traced
        first = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"{type(model).__name__} cannot become an ONNX graph: {type(error).__name__}: {first}. Take another form."
        ) from error
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        value.name = _called(value.name)
    return graph


def _called(name: str) -> str:
    """Optimum's name of what transformers calls `input.past_key_values.layers.3.keys`."""
    way, _, rest = name.partition(".past_key_values.layers.")
    if not rest:
        return name
    number, _, what = rest.partition(".")
    return f"{'past_key_values' if way == 'input' else 'present'}.{number}.{what.removesuffix('s')}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxscript say of themselves while they work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

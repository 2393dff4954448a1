"""Training for weights in few bits (QAT), by the names of torchao."""

from typing import Any

from luthier.migrate.draft import Draft

_GROUPS = {"int4": (32, 64, 128, 256), "int8": (None,)}
"""Weights that share a scale; None: a row."""
_OF_TORCHTUNE = {
    "Int8DynActInt4WeightQATQuantizer": "int8",
    "Int8DynActInt4WeightQATQuantizerModuleSwap": "int8",
    "Int4WeightOnlyQATQuantizer": None,
    "Int4WeightOnlyQATQuantizerModuleSwap": None,
}
"""Its classes, by what they round inputs to."""


def put_qat(draft: Draft, key: str, options: dict[str, Any]) -> None:
    """Sets the section `qat` from Axolotl's of that name."""
    weights, inputs = (_name(options.get(f"{what}_dtype", default)) for what, default in _DTYPES)
    _put(draft, key, weights or "int8", options.get("group_size", 32), inputs)
    if options.get("fake_quant_after_n_steps"):
        draft.none(f"{key}.fake_quant_after_n_steps", "weights are rounded from the first step on")
    if options.get("quantize_embedding"):
        draft.none(f"{key}.quantize_embedding", "embeddings are not rounded")


_DTYPES = (("weight", "int8"), ("activation", None))


def put_quantizer(draft: Draft, key: str, options: dict[str, Any]) -> None:
    """Sets the section `qat` from torchtune's quantizer."""
    kind = str(options.get("_component_", "")).rpartition(".")[2]
    if kind not in _OF_TORCHTUNE:
        draft.block(
            key, f"trains with quantisation in the loop by {kind or 'nothing named'}, which is not known"
        )
        return
    _put(draft, key, "int4", options.get("groupsize", 256), _OF_TORCHTUNE[kind])


def _put(draft: Draft, key: str, weights: str, group: int | None, inputs: str | None) -> None:
    if group not in _GROUPS.get(weights, ()) or inputs not in (None, "int8"):
        said = f"{weights} in groups of {group} with {'exact' if inputs is None else inputs} inputs"
        text = "which Luthier does not have; it has int4 in groups of 32 to 256, with exact or int8 inputs"
        draft.block(key, f"trains for {said} (QAT), {text}")
        return
    draft.map(key, "qat.name", weights)
    if group is not None:
        draft.put("qat.group", group)
    if inputs is not None:
        draft.put("qat.inputs", inputs)
    if draft.has("lora.dropout"):
        draft.put(
            "lora.dropout", 0.0, "an adapter that is rounded with its weight has no inputs of its own to drop"
        )


def _name(dtype: Any) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.").lower()

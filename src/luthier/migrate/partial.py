"""Ways to tune some of the weights, by the names that other tools have for them: the section `tune`."""

import re
from typing import Any

from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.readers import is_off, names, switch, text, whole

_ROWS = re.compile(r"\[\d*:\d*\]$")
"""How Axolotl names rows of a weight."""
_ORDERS = ("random", "ascending", "descending")


def put_unfrozen(draft: Draft, *, adapter: bool) -> None:
    """Axolotl's list of regular expressions for the weights that are tuned."""
    key = "unfrozen_parameters"
    if key not in draft.given:
        return
    if is_off(draft.given[key]):
        draft.needless(key, "is empty")
        return
    patterns = draft.get(key, _listed, [])
    if adapter:
        draft.block(key, "tunes weights beside an adapter; name their modules in lora_modules_to_save")
    elif any(_ROWS.search(pattern) for pattern in patterns):
        draft.block(key, "tunes some rows of a weight; Luthier tunes whole weights, or rows of new tokens")
    elif patterns:
        draft.map(
            key, "tune.train", [pattern if pattern[0] == "^" else f"^{pattern}" for pattern in patterns]
        )


def put_lisa(draft: Draft, *, adapter: bool) -> None:
    """Axolotl's LISA."""
    rest = ("lisa_step_interval", "lisa_layers_attribute")
    if is_off(draft.given.get("lisa_n_layers")):
        for key in ("lisa_n_layers", *rest):
            if key in draft.given:
                draft.needless(
                    key, "has no effect without lisa_n_layers" if key in rest else "is switched off"
                )
        return
    if adapter:
        draft.block("lisa_n_layers", "tunes layers in turn beside an adapter; leave out one of the two")
    draft.put("tune.name", "lisa")
    draft.map("lisa_n_layers", "tune.active_layers", draft.get("lisa_n_layers", whole, 2))
    if "lisa_step_interval" in draft.given:
        draft.map("lisa_step_interval", "tune.every", draft.get("lisa_step_interval", whole, 20))
    if "lisa_layers_attribute" in draft.given:
        draft.needless("lisa_layers_attribute", "the list of layers is found in the model")


def put_freeze(draft: Draft) -> None:
    """LLaMA-Factory's tuning of the last layers, or the first ones."""
    if draft.get("use_llama_pro", switch, False):
        blocks = draft.get("freeze_trainable_layers", whole, 2)
        draft.block(
            "use_llama_pro",
            "tunes layers that a script has put into the model; name the model from before, and Luthier adds them: "
            f"tune: {{name: expand, blocks: {blocks}}}",
        )
        return
    if "use_llama_pro" in draft.given:
        draft.needless("use_llama_pro", "is switched off")
    modules = draft.get("freeze_trainable_modules", names, ["all"])
    if modules != ["all"]:
        draft.block(
            "freeze_trainable_modules", "tunes some modules of some layers; name them in tune.train instead"
        )
        return
    number = draft.get("freeze_trainable_layers", whole, 2)
    draft.find("finetuning_type", *_mapped("tune"))
    layers = f"last {number}" if number > 0 else f"0-{-number - 1}"
    if "freeze_trainable_layers" in draft.given:
        draft.map("freeze_trainable_layers", "tune.layers", layers)
    else:
        draft.put("tune.layers", layers, f"the default of {draft.tool}")
    if "freeze_trainable_modules" in draft.given:
        draft.find("freeze_trainable_modules", *_mapped("tune.layers"))
    if extra := draft.get("freeze_extra_modules", names, []):
        draft.map("freeze_extra_modules", "tune.train", extra)
    elif "freeze_extra_modules" in draft.given:
        draft.needless("freeze_extra_modules", "is empty")


def put_badam(draft: Draft, *, whole_weights: bool) -> None:
    """LLaMA-Factory's BAdam."""
    rest = [key for key in draft.given if key.startswith("badam_")]
    if not draft.get("use_badam", switch, False):
        for key in rest:
            draft.needless(key, "has no effect without use_badam")
        if "use_badam" in draft.given:
            draft.needless("use_badam", "is switched off")
        return
    if not whole_weights:
        draft.block("use_badam", "needs finetuning_type: full, there as here")
    if draft.get("badam_mode", text, "layer") != "layer":
        draft.block("badam_mode", "tunes a random share of all numbers; Luthier's blocks are layers (layer)")
    draft.map("use_badam", "tune.name", "badam")
    order = draft.get("badam_switch_mode", text, "ascending")
    if order in _ORDERS:
        _put(draft, "badam_switch_mode", "tune.order", order)
    else:
        draft.block("badam_switch_mode", f"{order}: blocks take turns in a {', '.join(_ORDERS)} order")
    every = draft.get("badam_switch_interval", whole, 50)
    if every > 0:
        _put(draft, "badam_switch_interval", "tune.every", every)
    else:
        draft.block("badam_switch_interval", "never goes on to the next block; tune one layer (tune.layers)")
    for key in rest:
        if key not in ("badam_mode", "badam_switch_mode", "badam_switch_interval"):
            draft.none(key, "turns begin with the first block of the order, and nothing is masked")
        elif key == "badam_mode":
            draft.find(key, *_mapped("tune.name"))


def _put(draft: Draft, key: str, target: str, value: Any) -> None:
    """Maps a key, or puts the tool's default where it is absent."""
    if key in draft.given:
        draft.map(key, target, value)
    else:
        draft.put(target, value, f"the default of {draft.tool}")


def _mapped(target: str) -> tuple[Kind, str, str]:
    return Kind.MAPPED, "", target


def _listed(value: Any) -> list[str]:
    """Texts in a list; commas may be part of a regular expression."""
    return [text(item) for item in (value if isinstance(value, list) else [value])]

"""LoRA adapters, by the names that a tool has for their options."""

from dataclasses import dataclass
from typing import Any

from luthier.config.lora_section import known_inits
from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.readers import Misread, is_off, names, number, real, switch, whole

_ALL = ("all", "all-linear", "all_linear")


@dataclass(frozen=True)
class Adapter:
    """Where a tool has the options of an adapter: its keys, and its defaults."""

    rank: str
    alpha: str
    dropout: str
    target: str
    saved: str
    rslora: str
    dora: str
    plus: str
    """The ratio of LoRA+."""
    default_rank: int
    default_alpha: float | None = None
    """None: twice the rank."""


def put_adapter(draft: Draft, keys: Adapter) -> None:
    """Sets the section `lora`."""
    rank = draft.get(keys.rank, whole)
    if rank is None:
        draft.put("lora.rank", keys.default_rank, f"the default of {draft.tool}")
    else:
        draft.map(keys.rank, "lora.rank", rank)
    alpha = draft.get(keys.alpha, number)
    if alpha is not None:
        draft.map(keys.alpha, "lora.alpha", alpha)
    elif keys.default_alpha is not None:
        draft.put("lora.alpha", keys.default_alpha, f"the default of {draft.tool}")
    dropout = draft.get(keys.dropout, number)
    if dropout is not None:
        draft.map(keys.dropout, "lora.dropout", float(dropout))
    if keys.rslora in draft.given:
        draft.map(keys.rslora, "lora.rslora", draft.get(keys.rslora, switch, False))
    if keys.dora in draft.given:
        draft.map(keys.dora, "lora.dora", draft.get(keys.dora, switch, False))
    if not is_off(draft.given.get(keys.plus)):
        draft.map(keys.plus, "lora.plus_ratio", draft.get(keys.plus, real))
    elif keys.plus in draft.given:
        draft.needless(keys.plus, "is switched off")
    put_targets(draft, keys.target, draft.get(keys.target, module_names, "all"))
    saved = draft.get(keys.saved, names)
    if saved:
        draft.map(keys.saved, "lora.modules_to_save", saved)
    elif keys.saved in draft.given:
        draft.needless(keys.saved, "is empty")


def put_start(draft: Draft, key: str, folder: str, keys: Adapter) -> None:
    """Goes on with an adapter: its own rank, modules and scale hold."""
    own = [name for name in vars(keys).values() if isinstance(name, str) and name != keys.plus]
    for name in own:
        if name in draft.given:
            draft.needless(name, "is that of the adapter that is gone on with")
    draft.map(key, "lora.start", folder)
    if not is_off(draft.given.get(keys.plus)):
        draft.map(keys.plus, "lora.plus_ratio", draft.get(keys.plus, real))


def put_init(draft: Draft, key: str) -> None:
    """Sets `lora.init` from PEFT's `init_lora_weights`."""
    if key not in draft.given:
        return
    value = draft.given[key]
    name = str(value).lower()
    ours = "pissa_fast" if name.startswith("pissa_niter_") else name
    if value is True or name == "true":
        draft.needless(key, "is the usual start (B = 0), here too")
    elif ours in known_inits():
        draft.map(key, "lora.init", ours)
    else:
        draft.none(key, f"{value} is no way to start that is there; adapters start as usual (B = 0)")


def put_layers(draft: Draft, key: str) -> None:
    """Sets `lora.layers` from PEFT's `layers_to_transform`, a number or several."""
    if key not in draft.given:
        return
    value = draft.given[key]
    found = value if isinstance(value, list) else [value]
    if found and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in found):
        draft.map(key, "lora.layers", found)
    else:
        draft.find(key, Kind.UNKNOWN, f"is {value}, but it must be numbers of layers; it is left out")


def put_targets(draft: Draft, key: str, target: Any) -> None:
    """Sets `lora.target`: all, names or a pattern."""
    if key in draft.given:
        draft.map(key, "lora.target", target)


def module_names(value: Any) -> Any:
    """`all`, a list of names, or one regular expression for full names."""
    if isinstance(value, str) and value.strip().lower() in _ALL:
        return "all"
    if isinstance(value, str) and any(sign in value for sign in "\\()[]*|^$+"):
        return value
    found = names(value)
    if not found:
        raise Misread("is empty, but it must be names of modules")
    return "all" if any(name.lower() in _ALL for name in found) else found

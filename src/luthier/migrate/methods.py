"""Training methods of other tools, by what they learn from, and their options."""

from collections.abc import Callable
from typing import Any

from luthier.config.plugins import known_plugins
from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.readers import Misread, is_off, real, whole

_SAYS = {
    "dpo": "learns from preferences (DPO)",
    "kto": "learns from answers marked good or bad (KTO)",
    "orpo": "learns from preferences (ORPO)",
    "simpo": "learns from preferences (SimPO)",
    "cpo": "learns from preferences (CPO)",
    "rm": "trains a reward model",
    "reward": "trains a reward model",
    "prm": "trains a reward model for single steps",
    "ppo": "learns by reinforcement (PPO)",
    "grpo": "learns by reinforcement (GRPO)",
    "gdpo": "learns by reinforcement (GDPO)",
    "dft": "changes the loss of sft (DFT)",
    "asft": "changes the loss of sft (ASFT)",
    "eaft": "changes the loss of sft (EAFT)",
    "ebft": "fits features of whole answers (EBFT)",
}
TOP = 20
"""Tokens that the gate of EAFT looks at."""
_FORMS = {
    "ipo": ("dpo", {"loss_type": "ipo"}),
    "hinge": ("dpo", {"loss_type": "hinge"}),
    "rm": ("reward", {}),
}
"""Methods that are another one with an option."""

_COMPARING = ("dpo", "kto", "bco", "dpo_ranking")
"""Methods that compare with a reference."""


def put_method(draft: Draft, key: str, name: str) -> None:
    """Sets `method` if Luthier has it; else the file cannot be imported."""
    known = known_plugins()["method"]
    ours, options = _FORMS.get(name, (name, {}))
    if ours not in known:
        what = _SAYS.get(ours, f"asks for the method {name}")
        draft.block(key, f"{what}, which Luthier does not do yet")
        return
    draft.map(key, "method.name", ours)
    for option, value in options.items():
        draft.put(f"method.{option}", value)


def put_smoothing(draft: Draft) -> None:
    """Sets label smoothing from transformers' own key, which other methods than sft do not heed."""
    key = "label_smoothing_factor"
    method = draft.values.get("method", {}).get("name", "sft")
    if key not in draft.given:
        return
    if is_off(draft.given[key]):
        draft.needless(key, "is switched off")
    elif method == "sft":
        draft.map(key, "method.label_smoothing", draft.get(key, real, 0.0))
    else:
        draft.none(key, f"is not an option of {method} here")


def put_gate(draft: Draft, switch: str) -> None:
    """Sets the options of EAFT (`eaft_alpha`, `eaft_k`), which do nothing without the key that switches it on."""
    on = draft.values.get("method", {}).get("name") == "eaft"
    for key in ("eaft_alpha", "eaft_k"):
        if key not in draft.given:
            continue
        if not on:
            draft.needless(key, f"has no effect without {switch}")
        elif key == "eaft_alpha":
            draft.map(key, "method.alpha", draft.get(key, real, 1.0))
        elif draft.get(key, whole, TOP) == TOP:
            draft.needless(key, f"the gate looks at the {TOP} likeliest tokens here, too")
        else:
            draft.none(key, f"the gate always looks at the {TOP} likeliest tokens")


def put_options(draft: Draft, options: dict[str, tuple[str, Any]]) -> None:
    """Sets options of the method: for each key of the source, Luthier's option and the reader of its value.

    Keys that the method does not have change nothing where it is another method's, else they are listed.
    """
    for key, (option, read) in options.items():
        if key in draft.given:
            put_option(draft, key, option, draft.given[key], read)


def put_option(draft: Draft, key: str, option: str, value: Any, read: Callable[[Any], Any]) -> None:
    """Sets one option of the method, as `put_options` does."""
    method = draft.values.get("method", {}).get("name", "sft")
    known = known_plugins()["method"].get(method, {}).get("properties", {})
    if option in known:
        try:
            draft.map(key, f"method.{option}", read(value))
        except Misread as error:
            draft.find(key, Kind.UNKNOWN, f"{error}; it is left out")
    elif method == "sft":
        draft.needless(key, "belongs to methods that learn from preferences or rewards")
    else:
        draft.none(key, f"is not an option of {method} here")


def put_reference(draft: Draft, key: str, target: str, read: Callable[[Any], Any]) -> None:
    """Sets a key of the section `reference`, if the method compares with one; else it changes nothing."""
    if key not in draft.given:
        return
    if draft.values.get("method", {}).get("name", "sft") not in _COMPARING:
        draft.needless(key, "the method compares with no reference")
        return
    value = draft.get(key, read)
    if value is not None:
        draft.map(key, target, value)

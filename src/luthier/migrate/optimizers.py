"""Optimizers by the names of transformers, Axolotl, torch and bitsandbytes."""

import re

from luthier.config.plugins import known_plugins
from luthier.config.words import did_you_mean
from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind

_ADAMW = re.compile(
    r"(adamw(_hf|_torch|_torch_fused|_torch_xla|_torch_npu_fused|_apex_fused|_anyprecision)?|adam)"
)
_EIGHT = re.compile(r"(paged_|ao_)?adamw?_?(bnb_|torch_|ao_|optimi_)?_?(8|4)bit|adamw8bit|pagedadamw8bit")
_LOW_MEMORY = re.compile(
    r"(paged_)?adamw?_?(bnb_|torch_|ao_|optimi_)?(_?8bit|_?4bit|_?fp8|_?32bit)?|adamw8bit|pagedadamw(8bit|32bit)?"
    r"|optimi_adamw|flash_adamw"
)
_SAME = {
    "came_pytorch": "came",
    "galore_adamw": "galore",
    "apollo_adamw": "apollo",
    "lion_pytorch": "lion",
    "lion_32bit": "lion",
    "paged_lion_32bit": "lion",
    "lion_8bit": "lion",
    "paged_lion_8bit": "lion",
    "schedule_free_adamw": "schedule_free",
    "ademamix_8bit": "ademamix",
    "paged_ademamix_8bit": "ademamix",
    "paged_ademamix_32bit": "ademamix",
    "galore_adamw_8bit": "galore",
    "galore_adamw_layerwise": "galore",
    "apollo_adamw_layerwise": "apollo",
}
"""Ours by the names that others give them."""

_OTHERS = (
    *(
        "adafactor",
        "sgd",
        "adagrad",
        "rmsprop",
        "adamax",
        "nadam",
        "radam",
        "asgd",
        "lbfgs",
        "adadelta",
        "adamw",
    ),
    *(
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_bnb_8bit",
        "adamw_8bit",
        "paged_adamw_8bit",
        "adamw_torch_8bit",
    ),
    *(
        "adamw_torch_4bit",
        "paged_adamw_32bit",
        "ademamix",
        "ademamix_8bit",
        "lion",
        "lion_8bit",
        "lion_32bit",
    ),
    *("paged_lion_8bit", "paged_lion_32bit", "rmsprop_bnb", "galore_adamw", "galore_adamw_8bit", "lomo"),
    *("galore_adafactor", "adalomo", "grokadamw", "schedule_free_radam", "schedule_free_adamw"),
    *(
        "schedule_free_sgd",
        "apollo_adamw",
        "apollo_adamw_layerwise",
        "stable_adamw",
        "muon",
        "dion",
        "sinkgd",
    ),
    *(
        "came_pytorch",
        "optimi_adamw",
        "ao_adamw_4bit",
        "ao_adamw_8bit",
        "ao_adamw_fp8",
        "adopt_adamw",
        "soap",
    ),
    *("q_galore_adamw8bit", "lion_pytorch", "shampoo", "adam_mini"),
)
"""Names of optimizers that other tools know, for finding misspelt ones."""


def put_optimizer(draft: Draft, key: str, name: str, lr_key: str, lr: float | None) -> None:
    """Sets `optim.name` and `optim.lr` from the name of an optimizer and its learning rate.

    The learning rate of another kind of optimizer is left out, because it means nothing to AdamW.
    """
    asked = name.lower().rpartition(".")[2]
    plain = _SAME.get(asked, asked)
    known = known_plugins()["optim"]
    if plain in known and plain != "adamw":
        draft.map(key, "optim.name", plain, _difference(asked, plain))
    elif _ADAMW.fullmatch(plain):
        draft.put("optim.name", "adamw")
        if key in draft.given:
            draft.find(key, Kind.MAPPED, "", "optim.name")
    elif _EIGHT.fullmatch(plain):
        note = "states stay where the weights are" if "paged" in plain else ""
        draft.map(key, "optim.name", "adamw_4bit" if "4bit" in plain else "adamw_8bit", note)
    elif _LOW_MEMORY.fullmatch(plain):
        note = f"{name}: states are kept whole, in float32 (8 bytes for each trained weight; less with adamw_8bit)"
        draft.map(key, "optim.name", "adamw", note)
    else:
        ours = ", ".join(sorted(known))
        if plain in _OTHERS or plain.startswith(("galore", "apollo", "schedule_free", "flash_")):
            draft.none(key, f"{name} is not there; adamw is used, with its own learning rate (known: {ours})")
        else:
            hint = did_you_mean(plain, _OTHERS)
            draft.find(key, Kind.UNKNOWN, f"{name} is no optimizer that is known here{hint}")
        if lr is not None and lr_key in draft.given:
            draft.none(lr_key, f"is meant for {name}, so it is left out; set optim.lr for adamw")
        draft.put("optim.name", "adamw", f"instead of {name}")
        return
    if lr is not None and lr_key in draft.given:
        draft.map(lr_key, "optim.lr", float(lr))
    elif lr is not None:
        draft.put("optim.lr", float(lr), f"the default of {draft.tool}")


def _difference(asked: str, ours: str) -> str:
    """What is otherwise than the other tool's optimizer."""
    if "8bit" in asked and "8bit" not in ours:
        return f"{asked}: states are kept in float32"
    if "layerwise" in asked:
        return f"{asked}: weights are updated together, after the backward pass"
    return ""

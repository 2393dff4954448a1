"""Settings of other tools that tune some of the weights become the section `tune`."""

from typing import Any

import pytest

from luthier.migrate.tools import Refused
from migrate_parts import imported, small

FREEZE = {"finetuning_type": "freeze"}
WHOLE = {"finetuning_type": "full"}


def tune(tmp_path: Any, tool: str, given: dict[str, Any]) -> Any:
    return imported(tmp_path, small(tool) | given).values.get("tune")


@pytest.mark.parametrize(
    ("tool", "given", "expected"),
    [
        ("axolotl", {"adapter": None, "lisa_n_layers": 4, "lisa_step_interval": 10, "lisa_layers_attribute": "a.b"},
         {"name": "lisa", "active_layers": 4, "every": 10}),
        ("axolotl", {"adapter": None, "unfrozen_parameters": ["^lm_head.weight$", "model.layers.4[4-9]+.mlp"]},
         {"train": ["^lm_head.weight$", "^model.layers.4[4-9]+.mlp"]}),
        ("llamafactory", FREEZE, {"layers": "last 2"}),
        ("llamafactory", FREEZE | {"freeze_trainable_layers": 3, "freeze_extra_modules": "embed_tokens,norm"},
         {"layers": "last 3", "train": ["embed_tokens", "norm"]}),
        ("llamafactory", FREEZE | {"freeze_trainable_layers": -2, "freeze_trainable_modules": "all"},
         {"layers": "0-1"}),
        ("llamafactory", WHOLE | {"use_badam": True},
         {"name": "badam", "order": "ascending", "every": 50}),
        ("llamafactory", WHOLE | {"use_badam": True, "badam_switch_mode": "random", "badam_switch_interval": 100,
                                  "badam_mode": "layer", "badam_verbose": 2},
         {"name": "badam", "order": "random", "every": 100}),
        ("llamafactory", {"use_badam": False, "badam_switch_mode": "random"}, None),
        ("axolotl", {"lisa_n_layers": 0, "lisa_step_interval": 5}, None),
    ],
)  # fmt: skip
def test_what_has_a_counterpart(tool: str, given: dict[str, Any], expected: Any, tmp_path: Any) -> None:
    assert tune(tmp_path, tool, given) == expected


@pytest.mark.parametrize(
    ("tool", "given", "words"),
    [
        ("axolotl", {"adapter": None, "unfrozen_parameters": ["^a.weight$[:32000]"]}, "rows of a weight"),
        ("axolotl", {"adapter": "lora", "unfrozen_parameters": ["^a"]}, "beside an adapter"),
        ("axolotl", {"adapter": "lora", "lisa_n_layers": 4}, "beside an adapter"),
        ("llamafactory", FREEZE | {"freeze_trainable_modules": "q_proj"}, r"tune\.train"),
        ("llamafactory", FREEZE | {"use_llama_pro": True, "freeze_trainable_layers": 8}, r"blocks: 8"),
        ("llamafactory", WHOLE | {"use_badam": True, "badam_mode": "ratio"}, "random share"),
        ("llamafactory", {"use_badam": True}, "finetuning_type: full"),
    ],
)
def test_what_has_none_is_told(tool: str, given: dict[str, Any], words: str, tmp_path: Any) -> None:
    with pytest.raises(Refused, match=words):
        imported(tmp_path, small(tool) | given)

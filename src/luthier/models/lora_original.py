"""Adapters that start from a comparison of stored weights with the original ones, read again one by one."""

from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from luthier.errors import ModelError
from luthier.models.checkpoint_names import checkpoint_names
from luthier.models.lora import LoraLinear, adapters
from luthier.models.lora_init import load_original
from luthier.models.quantised.linear import QuantLinear
from luthier.models.quantised.reader import lazy_tensors


def begin_from_originals(model: PreTrainedModel, init: str, folder: Path) -> int:
    """Starts the adapters on stored layers as the file `init` of `models/lora_init/` makes of the weights in `folder`;
    returns how many they are. The others stay as they are.

    Raises:
        ModelError: an original weight cannot be read by itself.
    """
    stored = {
        name: module
        for name, module in adapters(model).items()
        if isinstance(module, LoraLinear) and isinstance(module.base, QuantLinear)
    }
    lazy = lazy_tensors(folder)
    if lazy is None:
        raise ModelError(
            f"lora.init: {init} reads the original weights again, one by one, which needs safetensors files, and "
            f"{folder} has none. Save the model as safetensors, or choose another lora.init."
        )
    with torch.device("meta"):
        empty = type(model)(AutoConfig.from_pretrained(folder, local_files_only=True))
    on_disk, make = checkpoint_names(empty, list(lazy)), load_original(init)
    for name, module in stored.items():
        if (source := on_disk.get(f"{name}.weight")) is None:
            raise ModelError(
                f"lora.init: {init} needs the original weight of {name}, which transformers assembles from other "
                "tensors. Leave this module out of lora.target, or choose another lora.init."
            )
        weight_MK = lazy[source][...].to(module.lora_A.device)
        assert isinstance(module.base, QuantLinear)
        decoded_MK = module.base.decoded(module.lora_A)
        module.begin(*make(weight_MK, decoded_MK, module.rank, module.scale), counts=True)
    return len(stored)

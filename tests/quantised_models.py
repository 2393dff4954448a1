"""What the tests of weights in few bits share."""

import torch
from transformers import PreTrainedModel

from luthier.models.lora import LoraLinear, apply_lora


def with_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The model with an adapter that is not at its start, the same on every call."""
    apply_lora(model, rank=4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_B.data.normal_(0, 0.02, generator=generator)
    return model

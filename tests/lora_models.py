"""What the tests of adapters share: adapters that have learned something, and logits to compare."""

from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from luthier.models.lora import adapter_parameters
from tiny_models import FAMILIES, OTHERS

TOKENS = torch.tensor([[5, 17, 3, 88, 41, 9, 60, 2, 33, 71], [8, 8, 1, 90, 12, 55, 4, 31, 77, 20]])
BUILDERS = {**FAMILIES, **OTHERS}
TIED = ("smollm", "qwen3", "gemma2", "gemma3", "cohere", "gpt2")
EMBEDDINGS = {"gpt2": "wte"}  # what the input embeddings are called where it is not embed_tokens


def build(family: str, **overrides: Any) -> Any:
    """The same random model on every call."""
    return BUILDERS[family](**overrides)


def logits(model: nn.Module) -> Tensor:
    """Logits of two short documents, in fp32."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


def teach(model: nn.Module, seed: int = 7) -> None:
    """Gives an adapter random content, as training would, large enough to change the logits a lot."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def teach_peft(model: nn.Module, seed: int = 8) -> None:
    """The same for a PEFT model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def in_peft(model: Any, folder: Path) -> peft.PeftModel:
    """The adapter of `folder` on `model`, as PEFT loads it."""
    return peft.PeftModel.from_pretrained(model, str(folder))


def difference(left: Tensor, right: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((left - right).abs().max() / right.abs().max()).item()

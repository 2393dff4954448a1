"""Where a model computes, and in which precision."""

import torch

from luthier.errors import ModelError
from luthier.kernels import processor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(requested: str) -> torch.device:
    """The device that `model.device` asks for; `auto` takes a GPU when there is one."""
    has_gpu = torch.cuda.is_available()
    if requested == "cuda" and not has_gpu:
        raise ModelError(
            "model.device is cuda, but torch finds no GPU here. "
            "Set model.device: cpu, or install a build of torch with CUDA and check the driver."
        )
    return torch.device("cuda" if requested != "cpu" and has_gpu else "cpu")


def pick_dtype(requested: str, device: torch.device, key: str = "model.dtype") -> torch.dtype:
    """The precision that a setting asks for; `auto` takes bfloat16 where the device computes it fast.

    Args:
        requested: what the setting says.
        device: where the model computes.
        key: the setting, for errors.

    Raises:
        ModelError: a 16-bit type was asked for on a CPU without instructions for it. It would run, many times
            slower than float32, so it is refused.
    """
    if requested == "auto":
        return torch.bfloat16 if computes_bf16(device) else torch.float32
    dtype = DTYPES[requested]
    if dtype is torch.bfloat16 and not computes_bf16(device):
        raise ModelError(
            f"{key} is bfloat16, but this {device.type.upper()} has no bfloat16 instructions and would be "
            f"many times slower than in float32. Set {key}: auto (float32 here)."
        )
    if dtype is torch.float16 and device.type == "cpu":
        raise ModelError(
            f"{key} is float16, but CPUs have no fast float16 and it overflows in training. Set {key}: auto."
        )
    return dtype


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return processor.multiplies_bf16()

"""A name for what a policy computes: numbers that were made with it hold for as long as the name is the same."""

import hashlib
import importlib.metadata
import json
import re

import torch
from torch import Tensor

from luthier.models.lora import LoraLinear
from luthier.models.policy import Policy

_ELSEWHERE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
"""Entries of a model's configuration that say nothing about its numbers, or that its weights say."""


def weights_key(policy: Policy) -> str:
    """A hash of all weights as they are loaded, of the model's configuration, and of the way that tokens take.

    An adapter that changes nothing does not count, so that runs with other ranks or seeds find what was
    made for the model beneath. Reads every weight once.
    """
    key = hashlib.sha256(json.dumps(_way(policy), sort_keys=True).encode())
    idle = {id(weight) for weight in _idle_adapters(policy)}
    for name, tensor in [*policy.named_parameters(), *policy.named_buffers()]:
        if id(tensor) in idle:
            continue
        plain = re.sub(r"(\.base)+\.", ".", name)
        key.update(f"{plain}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().flatten().cpu()
        key.update(flat.view(torch.uint8).numpy())
    return key.hexdigest()


def _idle_adapters(policy: Policy) -> list[Tensor]:
    found = []
    for module in policy.modules():
        if isinstance(module, LoraLinear) and module.idle:
            rest = (module.start_A, module.start_B, module.lora_magnitude, module.lora_bias)
            found += [module.lora_A, module.lora_B, *(tensor for tensor in rest if tensor is not None)]
    return found


def _way(policy: Policy) -> dict[str, object]:
    """What decides numbers besides weights."""
    config = {n: v for n, v in policy.model.config.to_dict().items() if n not in _ELSEWHERE}
    scales = {n: m.scale for n, m in policy.named_modules() if isinstance(m, LoraLinear) and not m.idle}
    return {
        "config": repr(sorted(config.items())),
        "layout": policy.layout,
        "shape": repr(policy.head.shape),
        "scales": repr(scales),
        "device": next(policy.parameters()).device.type,
        "own_forwards": sum("forward" in vars(module) for module in policy.modules()),  # fused layers
        "versions": [importlib.metadata.version(name) for name in ("luthier", "torch", "transformers")],
    }

"""Writes the model that all contestants load: random normal weights, an adapter that changes its answers, a tokenizer.

Stored in bfloat16, as models on the hub are. Weights are never zero: matrix products of zeros run faster.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from bench.protocol import Spec, Wire
from bench.shapes import SHAPES, Shape

ADAPTER = "adapter"
"""Folder of the adapter inside the model's folder."""


def run(spec: Spec, wire: Wire) -> None:
    """Writes model, tokenizer and adapter to `spec["folder"]` and sends nothing but `loaded`."""
    shape, folder = SHAPES[spec["shape"]], Path(spec["folder"])
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.model_type, **shape.config(spec["max_positions"]))
    with torch.device(spec["device"]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = None  # so that every answer has its full length
    model.save_pretrained(folder)
    tokenizer(shape).save_pretrained(folder)
    if spec["rank"]:
        save_adapter(shape, spec["rank"], folder / ADAPTER)
    wire.send("loaded")


def tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """A tokenizer that knows its special tokens and nothing else; rows come as ids, but trainers want to have one."""
    words = {"<eos>": 0, "<pad>": 1, "<unknown>": 2}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unknown>"
    )


def save_adapter(shape: Shape, rank: int, folder: Path) -> None:
    """An adapter in PEFT's format, both matrices random."""
    import json

    draw = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(shape.layers):
        for name, (inputs, outputs) in shape.linears.items():
            block = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            key = f"base_model.model.model.layers.{layer}.{block}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, inputs, generator=draw) * inputs**-0.5
            tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, rank, generator=draw) * 0.02
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "bench",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(shape.linears),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")

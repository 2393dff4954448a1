"""Models as other tools store them, written here from the published layouts, plainly and without their code.

Each sample is a function from a weight [M, K] to the tensors of its module and the weight that they stand for, computed
in the order and precision of the tool that reads them. `SAMPLES` has them by name, the first word being the format.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Sample = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
GROUP = 16
SIZES = {"intermediate_size": 64, "num_key_value_heads": 4, "tie_word_embeddings": True}
"""Of tiny models whose weights fill whole words in every format."""


def words(codes: Iterable[int], bits: int) -> list[int]:
    """Codes end to end, the first in the lowest bits, as signed 32-bit words."""
    codes = list(codes)
    number = sum(code << bits * place for place, code in enumerate(codes))
    found = [number >> 32 * word & 0xFFFFFFFF for word in range(-(-len(codes) * bits // 32))]
    return [word - 2**32 if word >= 2**31 else word for word in found]


def rows_of_words(codes: Tensor, bits: int) -> Tensor:
    return torch.tensor([words(row, bits) for row in codes.tolist()], dtype=torch.int32)


def grouped(
    weight_MK: Tensor, bits: int, *, symmetric: bool, group_of: Tensor, kind: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes [M, K], scales [M, G], zero points [M, G], and (code - zero) · scale in `kind`."""
    num_groups, top = int(group_of.max()) + 1, 2**bits - 1
    low = torch.stack([weight_MK[:, group_of == g].amin(1) for g in range(num_groups)], 1).clamp(max=0)
    high = torch.stack([weight_MK[:, group_of == g].amax(1) for g in range(num_groups)], 1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale_MG = ((high - low) / top).to(kind)
    middle = torch.full_like(low, float(2 ** (bits - 1)))
    zero_MG = middle if symmetric else (-low / scale_MG.float()).round().clamp(0, top)
    wide_scale, wide_zero = scale_MG[:, group_of], zero_MG[:, group_of]
    codes_MK = (weight_MK / wide_scale.float() + wide_zero).round().clamp(0, top)
    decoded = (codes_MK - wide_zero).to(kind) * wide_scale
    return codes_MK.to(torch.int64), scale_MG, zero_MG.to(torch.int64), decoded


def runs(num_in: int) -> Tensor:
    return torch.arange(num_in) // GROUP


def gptq(bits: int, *, symmetric: bool, act_order: bool = False, second: bool = False) -> Sample:
    def sample(weight_MK: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        group_of = runs(weight_MK.shape[1])
        if act_order:
            group_of = group_of[torch.randperm(len(group_of), generator=torch.Generator().manual_seed(3))]
        codes, scale, zero, decoded = grouped(
            weight_MK, bits, symmetric=symmetric, group_of=group_of, kind=torch.float16
        )
        zero = zero if second else (zero - 1) % 2**bits
        return {
            "qweight": rows_of_words(codes, bits).T.contiguous(),
            "qzeros": rows_of_words(zero.T, bits),
            "scales": scale.T.contiguous(),
            "g_idx": group_of.to(torch.int32),
        }, decoded

    return sample


def awq(weight_MK: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    codes, scale, zero, decoded = grouped(
        weight_MK, 4, symmetric=False, group_of=runs(weight_MK.shape[1]), kind=torch.float16
    )
    order = (0, 2, 4, 6, 1, 3, 5, 7)

    def mixed(plain: Tensor) -> Tensor:
        rows = [
            [row[start + place] for start in range(0, len(row), 8) for place in order]
            for row in plain.tolist()
        ]
        return rows_of_words(torch.tensor(rows), 4)

    return {"qweight": mixed(codes.T), "qzeros": mixed(zero.T), "scales": scale.T.contiguous()}, decoded


def packed_integers(bits: int, *, symmetric: bool, channel: bool = False) -> Sample:
    def sample(weight_MK: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        num_in = weight_MK.shape[1]
        group_of = torch.zeros(num_in, dtype=torch.int64) if channel else runs(num_in)
        codes, scale, zero, decoded = grouped(
            weight_MK, bits, symmetric=symmetric, group_of=group_of, kind=torch.bfloat16
        )
        found = {
            "weight_packed": rows_of_words(codes, bits),
            "weight_shape": torch.tensor(weight_MK.shape),
            "weight_scale": scale,
        }
        if not symmetric:
            found["weight_zero_point"] = rows_of_words(zero.T, bits).T.contiguous()
        return found, decoded

    return sample


def whole_integers(weight_MK: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = (weight_MK.abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (weight_MK / scale.float()).round().clamp(-128, 127)
    return {"weight": codes.to(torch.int8), "weight_scale": scale}, codes.bfloat16() * scale


def floats(by: str, mark: str = "weight_scale", side: int = 32, kind: torch.dtype = torch.float32) -> Sample:
    def sample(weight_MK: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        if by == "tensor":
            scale = wide = (weight_MK.abs().amax() / 448).to(kind)[None]
        elif by == "row":
            scale = wide = (weight_MK.abs().amax(1, keepdim=True) / 448).to(kind)
        else:
            blocks = weight_MK.unflatten(1, (-1, side)).unflatten(0, (-1, side)).abs().amax((1, 3)) / 448
            scale = blocks.to(kind)
            wide = scale.repeat_interleave(side, 0).repeat_interleave(side, 1)
        codes = (weight_MK / wide.float()).to(torch.float8_e4m3fn)
        return {"weight": codes, mark: scale}, codes.to(kind) * wide

    return sample


def whole_bytes(weight_MK: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """LLM.int8(), decoded in the order of the library: code · largest · (1/127)."""
    largest = weight_MK.abs().amax(1)
    codes = (weight_MK * (127 / largest[:, None])).round().to(torch.int8)
    decoded = codes * largest[:, None] * 7.874015718698502e-3
    return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}, decoded


def four_bits(kind: str, *, double: bool, dtype: torch.dtype = torch.float32) -> Sample:
    """Packed and decoded by the library itself."""

    def sample(weight_MK: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        import bitsandbytes.functional as functional

        codes, state = functional.quantize_4bit(
            weight_MK.to(dtype), blocksize=64, compress_statistics=double, quant_type=kind
        )
        named = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
        # Blocks go on over rows. bitsandbytes 0.50 forgets that where AVX-512 decodes rows shorter than a block.
        state.shape = torch.Size((weight_MK.numel() // 64, 64))
        return {"weight": codes, **named}, functional.dequantize_4bit(codes, state).view(weight_MK.shape)

    return sample


def _groups(bits: int, **more: Any) -> dict[str, Any]:
    return {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, **more}}}


_PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
_FLOAT = {"quant_method": "compressed-tensors", "format": "float-quantized"}
SAMPLES: dict[str, tuple[dict[str, Any], Sample]] = {
    **{
        f"gptq {bits} {'symmetric' if symmetric else 'zeros'}": (
            {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": symmetric},
            gptq(bits, symmetric=symmetric),
        )
        for bits in (2, 3, 4, 8)
        for symmetric in (True, False)
    },
    "gptq 4 by activation": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
        gptq(4, symmetric=True, act_order=True),
    ),
    "gptq 3 by activation, second version": (
        {"quant_method": "gptq", "bits": 3, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
        gptq(3, symmetric=False, act_order=True, second=True),
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq),
    **{
        f"compressed_tensors packed {bits} {symmetric=} {channel=}": (
            {**_PACKED, "config_groups": _groups(bits, symmetric=symmetric)},
            packed_integers(bits, symmetric=symmetric, channel=channel),
        )
        for bits, symmetric, channel in (
            (4, True, False),
            (4, False, False),
            (4, True, True),
            (8, True, False),
        )
    },
    "compressed_tensors int8": (
        {**_PACKED, "format": "int-quantized", "config_groups": _groups(8, symmetric=True)},
        whole_integers,
    ),
    **{
        f"compressed_tensors float {by}": (
            {**_FLOAT, "config_groups": _groups(8, block_structure=[32, 32] if by == "block" else None)},
            floats(by, kind=torch.bfloat16),
        )
        for by in ("tensor", "row", "block")
    },
    "fp8": ({"quant_method": "fp8", "weight_block_size": [32, 32]}, floats("block", "weight_scale_inv")),
    "bitsandbytes int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, whole_bytes),
    **{
        f"bitsandbytes {kind} {double=}": (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind},
            four_bits(kind, double=double),
        )
        for kind in ("nf4", "fp4")
        for double in (False, True)
    },
}


def store_as(folder: Path, sample: str) -> dict[str, Tensor]:
    """Rewrites the plain model in `folder` as the tool stores it; gives the weights that it stands for, by module."""
    about, make = SAMPLES[sample]
    plain, kept, decoded = load_file(folder / "model.safetensors"), {}, {}
    for name, tensor in plain.items():
        if "_proj." in name and name.endswith(".weight"):
            module = name.removesuffix(".weight")
            parts, decoded[module] = make(tensor.float())
            kept |= {f"{module}.{short}": part.clone().contiguous() for short, part in parts.items()}
        else:
            kept[name] = tensor
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": about}))
    return decoded

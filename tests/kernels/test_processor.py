"""Which processors are taken to multiply bfloat16: those with instructions for it, not all that torch's query names."""

import platform

import pytest
import torch

from luthier.kernels import processor, skinny_linear
from luthier.models.device import pick_dtype

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An x86 processor with AVX-512 but nothing for bfloat16, as torch describes it; tests add to it."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    # what conftest.py takes from all tests: that a CPU is asked
    monkeypatch.setattr("luthier.models.device.computes_bf16", lambda device: processor.multiplies_bf16())
    return monkeypatch


def test_avx512_alone_computes_in_fp32(machine: pytest.MonkeyPatch) -> None:
    assert not processor.multiplies_bf16()
    assert pick_dtype("auto", CPU) is torch.float32
    assert not skinny_linear._computes_bf16(torch.zeros(1))


@pytest.mark.parametrize("feature", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_instructions_for_bfloat16_are_used(machine: pytest.MonkeyPatch, feature: str) -> None:
    machine.setattr(torch.cpu, feature, lambda: True)
    assert pick_dtype("auto", CPU) is torch.bfloat16
    machine.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)  # a build without oneDNN
    assert pick_dtype("auto", CPU) is torch.float32


def test_on_arm_torchs_query_decides(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(platform, "machine", lambda: "aarch64")
    assert pick_dtype("auto", CPU) is torch.bfloat16
    machine.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert pick_dtype("auto", CPU) is torch.float32


@pytest.mark.parametrize("feature", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_instructions_for_bfloat16_take_over_sooner_from_the_linear_layer_for_few_rows(
    machine: pytest.MonkeyPatch, feature: str
) -> None:
    assert skinny_linear.most_rows(torch.bfloat16) == skinny_linear.MAX_ROWS
    machine.setattr(torch.cpu, feature, lambda: True)
    assert skinny_linear.most_rows(torch.bfloat16) < skinny_linear.MAX_ROWS
    assert skinny_linear.most_rows(torch.float32) == skinny_linear.MAX_ROWS  # they do not take fp32
    machine.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)  # nor does torch then
    assert skinny_linear.most_rows(torch.bfloat16) == skinny_linear.MAX_ROWS

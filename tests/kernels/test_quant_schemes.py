"""Every way to store a weight keeps the same contract: found by its file, exact, small, within its error."""

import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor

import luthier.kernels.quant
from kernel_parts import DTYPES, intact, strided
from luthier.config.plugins import known_plugins, load_plugin
from luthier.errors import ModelError
from luthier.kernels import native
from luthier.kernels.quant.base import Scheme, Stored, row_chunks, store

NAMES = [
    m.name
    for m in pkgutil.iter_modules(luthier.kernels.quant.__path__)
    if m.name != "base" and not m.name.startswith("_")
]
SHAPES = ((64, 256), (6, 128), (1, 64), (5, 192))


def scheme(name: str, **options: Any) -> Scheme:
    return load_plugin(luthier.kernels.quant, name)(**options)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.03


def test_the_folder_is_the_registry() -> None:
    assert len(NAMES) >= 3 and set(NAMES) == set(known_plugins()["quant"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_decoded_is_the_same_bits_by_every_path(name: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        stored = store(scheme(name), normal(*shape).to(dtype))
        assert stored.shape == shape and stored.dtype == dtype and not stored.requires_grad
        made = stored.weight()
        out = strided(torch.zeros(shape, dtype=dtype))
        assert stored.write(out) is out and intact(out) and torch.equal(out, made)
        with native.disabled():
            assert torch.equal(stored.weight(), made)
        wide = stored.write(torch.empty(shape, dtype=torch.float32))
        assert torch.equal(wide.to(dtype), made)  # rounded once


@pytest.mark.parametrize("name", NAMES)
def test_error_and_memory_are_what_the_scheme_says(name: str) -> None:
    weight = normal(512, 1024)
    stored = store(scheme(name), weight)
    assert torch.equal(weight, normal(512, 1024)), "it was only read"
    error = (stored.weight() - weight).norm() / weight.norm()
    assert 0.3 * stored.scheme.error() < error <= stored.scheme.error()
    assert 8 * stored.num_bytes / weight.numel() == pytest.approx(stored.scheme.bits(), rel=0.02)
    assert all(part.layout == torch.strided and part.device.type == "cpu" for part in stored.parts.values())


@pytest.mark.parametrize("name", NAMES)
def test_storing_what_was_decoded_changes_little_and_zeros_stay(name: str) -> None:
    weight = store(scheme(name), normal(8, 256, seed=3)).weight()
    again = store(scheme(name), weight).weight()
    torch.testing.assert_close(again, weight, rtol=0.05, atol=0.05 * float(weight.abs().max()))
    assert not store(scheme(name), torch.zeros(4, 64)).weight().any()


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_plain_tensors_that_can_be_moved(name: str) -> None:
    stored = store(scheme(name), normal(8, 128))
    copied = Stored(
        stored.scheme, {k: p.clone() for k, p in stored.parts.items()}, stored.shape, stored.dtype
    )
    assert torch.equal(copied.weight(), stored.weight())


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_two_weights_share_a_byte(name: str) -> None:
    with pytest.raises(ModelError, match=r"shape \[4, 33\] cannot be stored: .* odd"):
        store(scheme(name), normal(4, 33))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_options_of_four_bits(name: str, block: int, double: bool) -> None:
    weight = normal(256, 512)
    stored = store(scheme(name, block=block, double=double), weight)
    assert 8 * stored.num_bytes / weight.numel() == pytest.approx(stored.scheme.bits(), rel=0.02)
    assert (stored.weight() - weight).norm() / weight.norm() < stored.scheme.error()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_what_bitsandbytes_stored_is_decoded_to_the_bit(name: str, double: bool, dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = normal(96, 256).to(dtype)
    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type=name)
    parts = {"codes": codes.view(96, 128), "absmax": state.absmax, "table": state.code}
    if double:
        parts |= {
            "absmax_table": state.state2.code,
            "absmax_scale": state.state2.absmax,
            "absmax_mean": state.offset,
        }
    ours = Stored(scheme(name, double=double), parts, (96, 256), dtype)
    assert torch.equal(ours.weight(), functional.dequantize_4bit(codes, state))
    assert torch.equal(store(ours.scheme, weight).parts["table"], state.code)


def test_nf4_of_a_block_by_hand() -> None:
    """From the values that the paper lists (arXiv:2305.14314, appendix E)."""
    below = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911)
    listed = (*below, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0)
    weight = torch.zeros(1, 64)
    weight[0, :6] = torch.tensor([-4.0, 2.0, 0.33, -1.0, 0.1, 3.4])
    decoded = store(scheme("nf4", double=False), weight).weight()[0]
    expected = [
        4 * listed[i] for i in (0, 12, 8, 4, 7, 14)
    ]  # 2/4 lies between 0.4407 and 0.5626, nearer the first
    torch.testing.assert_close(decoded[:6], torch.tensor(expected), rtol=1e-3, atol=1e-4)
    assert not decoded[6:].any()


def test_mxfp4_of_a_block_by_hand() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :7] = torch.tensor([7.9, -5.0, 2.5, 0.25, -0.26, 1.25, 3.5])
    decoded = store(scheme("mxfp4"), weight).weight()[0]
    assert decoded[:7].tolist() == [6.0, -4.0, 2.0, 0.0, -0.5, 1.0, 4.0]  # ties go to even codes
    assert torch.equal(store(scheme("mxfp4"), weight / 64).weight()[0], decoded / 64)


@pytest.mark.parametrize("num_bits", [1, 2, 3, 4, 5, 6, 8])
def test_hqq_keeps_its_bits_and_its_fit_is_better_than_plain_rounding(num_bits: int) -> None:
    weight = normal(128, 256)
    stored = store(scheme("hqq", num_bits=num_bits), weight)
    assert 8 * stored.num_bytes / weight.numel() == pytest.approx(stored.scheme.bits(), rel=0.01)
    groups = weight.view(-1, 64)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = (high - low) / (2**num_bits - 1)
    plain = ((groups - low) / step).round() * step + low

    def damage(decoded: Tensor) -> float:
        return float((groups - decoded.reshape(groups.shape)).abs().pow(0.7).sum())

    assert damage(stored.weight()) < 1.01 * damage(plain)
    assert (stored.weight() - weight).norm() / weight.norm() < stored.scheme.error()
    assert len(torch.unique(stored.weight().view(-1, 64)[0])) <= 2**num_bits


def test_chunks_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.kernels.quant.base.CHUNK", 300)
    weight = normal(7, 128)
    assert [(c.start, c.stop) for c in row_chunks(weight)] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    pieces = store(scheme("int8"), weight).weight()
    monkeypatch.undo()
    assert torch.equal(pieces, store(scheme("int8"), weight).weight())


@pytest.mark.parametrize("shape", [(40, 70), (64, 64), (3, 33)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8_in_blocks_scales_each_square(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = normal(*shape).to(dtype)
    weight[:3, :5] *= 1000  # of one block, which must not reach the others
    stored = store(scheme("fp8", block=32), weight)
    decoded = stored.weight()
    for top in range(0, shape[0], 32):
        for left in range(0, shape[1], 32):
            block = weight[top : top + 32, left : left + 32].float()
            scale = block.abs().max() / 448
            expected = ((block / scale).to(torch.float8_e4m3fn).float() * scale).to(dtype)
            assert torch.equal(decoded[top : top + 32, left : left + 32], expected)
    assert stored.parts["scale"].shape == (-(-shape[0] // 32), -(-shape[1] // 32))

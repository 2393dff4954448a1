"""Every op on the output head gives, with a head in few bits, what it gives with the decoded one; and never decodes it
whole."""

import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import luthier.kernels.quant
from kernel_parts import DTYPES
from luthier.config.plugins import load_plugin
from luthier.kernels import logprob, sampled_targets, teacher, token_statistics, top_tokens
from luthier.kernels.decoded_head import DecodedHead, block_rows
from luthier.kernels.head import HeadWeight
from luthier.kernels.quant.base import Scheme, store
from luthier.kernels.quant.nf4 import NF4
from luthier.kernels.workspace import Workspace

NAMES = [
    m.name
    for m in pkgutil.iter_modules(luthier.kernels.quant.__path__)
    if m.name != "base" and not m.name.startswith("_")
]
WIDTH = 128
STATISTICS = ("logz", "mean_logp", "entropy", "log_squares", "top_entropy", "is_top")
Op = Callable[[dict[str, Any], Tensor, HeadWeight], tuple[Tensor, ...]]


def scheme(name: str, **options: Any) -> Scheme:
    return load_plugin(luthier.kernels.quant, name)(**options)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(weight_VD: Tensor, how: Scheme, rows: int = 4) -> tuple[DecodedHead, Tensor]:
    """A head in few bits, and the tensor that it decodes to."""
    stored = store(how, weight_VD)
    return DecodedHead(stored, Workspace(), rows), stored.weight()


def token_logprobs(case: dict[str, Any], hidden: Tensor, weight: HeadWeight) -> tuple[Tensor, ...]:
    return (
        logprob.token_logprobs(hidden, weight, case["bias_V"], *told(case, "target_N", "shape", "chunk")),
    )


def linear_loss(case: dict[str, Any], hidden: Tensor, weight: HeadWeight) -> tuple[Tensor, ...]:
    target, coefficient = case["target_N"], torch.linspace(-1, 1, len(hidden))
    return logprob.linear_loss(
        hidden, weight, case["bias_V"], target, coefficient, *told(case, "shape", "chunk")
    )


def statistics(case: dict[str, Any], hidden: Tensor, weight: HeadWeight) -> tuple[Tensor, ...]:
    found = token_statistics.token_statistics(
        hidden, weight, case["bias_V"], case["target_N"], STATISTICS, *told(case, "shape", "chunk")
    )
    return tuple(found.values())


def token_divergence(case: dict[str, Any], hidden: Tensor, weight: HeadWeight) -> tuple[Tensor, ...]:
    some = told(case, "target_N", "teacher", "measure", "shape", "chunk")
    return teacher.token_divergence(hidden, weight, case["bias_V"], *some)


def linear_divergence(case: dict[str, Any], hidden: Tensor, weight: HeadWeight) -> tuple[Tensor, ...]:
    ramp, some = torch.linspace(-1, 1, len(hidden)), told(case, "target_N", "teacher", "measure")
    return teacher.linear_loss(
        hidden, weight, case["bias_V"], *some, ramp, 1 + ramp**2, *told(case, "shape", "chunk")
    )


def told(case: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(case[name] for name in names)


OPS: list[tuple[Op, list[dict[str, Any]]]] = [
    (token_logprobs, logprob.cases()),
    (linear_loss, logprob.cases()),
    (statistics, token_statistics.cases()),
    (token_divergence, teacher.cases()),
    (linear_divergence, teacher.cases()),
]


def in_fp32(case: dict[str, Any]) -> dict[str, Any]:
    """The case in fp32, as wide as blocks are."""
    number, vocabulary = len(case["hidden_ND"]), len(case["weight_VD"])
    bias = None if case["bias_V"] is None else case["bias_V"].float()
    wide = {"hidden_ND": normal(number, WIDTH), "weight_VD": 0.2 * normal(vocabulary, WIDTH, seed=1)}
    return case | wide | {"bias_V": bias}


def near(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-6 * expected.norm() + 1e-7)


@pytest.mark.parametrize(("op", "cases"), OPS, ids=[op.__name__ for op, _ in OPS])
def test_an_op_gives_what_it_gives_with_the_decoded_head(op: Op, cases: list[dict[str, Any]]) -> None:
    for case in map(in_fp32, cases):
        head, decoded = both(case["weight_VD"], NF4())
        results = []
        for weight in (head, decoded):
            hidden = case["hidden_ND"].clone().requires_grad_()
            values = op(case, hidden, weight)
            total = sum(
                (v * torch.linspace(0.5, 1.5, v.numel()).view(v.shape)).sum()
                for v in values
                if v.requires_grad
            )
            (gradient,) = torch.autograd.grad(total, hidden)
            results.append((*values, gradient))
        for found, expected in zip(*results, strict=True):
            assert near(found.detach(), expected.detach())


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_gives_rows_and_heads(name: str) -> None:
    """By contract: rows decode to the bits that they have in the whole weight, whichever are asked for."""
    stored = store(scheme(name), normal(50, WIDTH))
    whole, index = stored.weight(), torch.tensor([3, 49, 0, 3, 17])
    assert stored.scheme.why_no_rows(WIDTH) is None
    assert torch.equal(stored.rows(index).weight(), whole[index])
    part = stored.rows(slice(7, 20))
    assert part.shape == (13, WIDTH) and torch.equal(part.weight(), whole[7:20])
    assert torch.equal(stored.rows(slice(48, 99)).weight(), whole[48:])
    assert stored.rows(index[:0]).weight().shape == (0, WIDTH)
    inside = {one.untyped_storage().data_ptr() for one in stored.parts.values()}
    largest = max(part.parts.values(), key=lambda one: one.numel())
    assert largest.untyped_storage().data_ptr() in inside, "rows in order are not copied"
    case = in_fp32(logprob.cases()[0])
    head, decoded = both(case["weight_VD"], scheme(name))
    assert near(
        token_logprobs(case, case["hidden_ND"], head)[0], token_logprobs(case, case["hidden_ND"], decoded)[0]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
def test_scales_of_scales_are_found_across_rows(double: bool, dtype: torch.dtype) -> None:
    """A second scale is for 256 blocks, which rows of nine of them cut."""
    stored = store(NF4(double=double), normal(301, 9 * 64).to(dtype))
    index = torch.randperm(301, generator=torch.Generator().manual_seed(0))
    assert torch.equal(stored.rows(index).weight(), stored.weight()[index])
    assert torch.equal(stored.rows(slice(100, 200)).weight(), stored.weight()[100:200])


def test_what_has_no_rows_of_its_own_says_so() -> None:
    assert "no whole blocks of 64" in str(NF4().why_no_rows(96))
    assert "squares of 32" in str(scheme("fp8", block=32).why_no_rows(128))


def test_teachers_and_draws_go_through_it_too() -> None:
    hidden, generator = normal(9, WIDTH), torch.Generator()
    head, decoded = both(0.2 * normal(30, WIDTH, seed=1), NF4())
    tops = [top_tokens.top_tokens(teacher.TeacherHead(hidden, one), 4, chunk=2) for one in (head, decoded)]
    assert torch.equal(tops[0].ids_NK, tops[1].ids_NK) and near(tops[0].logp_NK1, tops[1].logp_NK1)
    drawn = [
        sampled_targets.sampled_targets(hidden, one, None, teacher.PLAIN, generator.manual_seed(3), 4)
        for one in (head, decoded)
    ]
    assert torch.equal(*drawn)
    case = next(c for c in teacher.cases() if isinstance(c["teacher"], teacher.TeacherHead))
    theirs = replace(case["teacher"], hidden_ND=hidden[:5], bias_V=None)
    found = [
        token_divergence(
            in_fp32(case) | {"teacher": replace(theirs, weight_VD=one)}, normal(5, WIDTH), decoded[:11]
        )
        for one in (head, decoded)
    ]
    assert near(found[0][1], found[1][1])


@pytest.mark.parametrize("op", [token_logprobs, linear_loss])
def test_bf16_error_is_at_most_twice_that_of_the_decoded_head(op: Op) -> None:
    case: dict[str, Any] = {
        "bias_V": None,
        "target_N": torch.arange(64) % 503,
        "shape": teacher.PLAIN,
        "chunk": 16,
    }
    hidden, weight = normal(64, WIDTH).bfloat16(), 0.1 * normal(503, WIDTH, seed=2).bfloat16()
    head, decoded = both(weight, NF4(), rows=100)

    def gradient(kind: torch.dtype, one: HeadWeight) -> Tensor:
        leaf = hidden.to(kind).requires_grad_()
        return torch.autograd.grad(op(case, leaf, one)[0].sum(), leaf)[0].double()

    exact = gradient(torch.float64, decoded.double())
    ours, plain = gradient(torch.bfloat16, head), gradient(torch.bfloat16, decoded)
    assert (ours - exact).norm() <= 2 * (plain - exact).norm()


def test_no_more_than_a_block_is_decoded() -> None:
    head, _ = both(normal(1000, WIDTH), NF4(), rows=64)
    case: dict[str, Any] = {"bias_V": None, "target_N": torch.arange(8), "shape": teacher.PLAIN, "chunk": 4}
    leaf = normal(8, WIDTH).requires_grad_()
    linear_loss(case, leaf, head)[0].backward()
    assert head.workspace.num_bytes == 64 * WIDTH * 4
    assert block_rows((49152, 576), torch.float32) * 576 * 4 <= 32 << 20
    assert block_rows((100, 64), torch.float32) == 100

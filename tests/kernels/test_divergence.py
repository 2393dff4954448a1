"""Divergences from a teacher: formulas, limits, gradients, and the head that never holds all logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.kernels import divergence
from luthier.kernels import teacher as head
from luthier.kernels.divergence import Divergence, bucketed, log_softmax
from luthier.kernels.head import wide
from luthier.kernels.softmax_gradient import LogitShape
from luthier.kernels.teacher import TeacherHead, TeacherLogits, TopTokens, token_divergence

BETAS = (0.0, 0.3, 0.5, 1.0)


def by_hand(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """Sums over probabilities, one row after another."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([(x * (x / y).log()).sum() for x, y in zip(a, b, strict=True)])

    if beta in (0.0, 1.0):
        return kl(p, q) if beta == 0 else kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("case", divergence.cases())
def test_values_are_the_sums_and_elasticities_give_the_gradient(case: dict[str, Any]) -> None:
    teacher, measure = case["teacher_RV"], case["measure"]
    student = case["student_RV"].clone().requires_grad_()
    found = divergence.reference(teacher, student, measure)
    p, q = ((x / measure.temperature).softmax(-1) for x in (teacher, student))
    torch.testing.assert_close(found, by_hand(p, q, measure.beta))
    (truth,) = torch.autograd.grad(found.sum(), student)
    e = measure.elasticities(*(log_softmax(x, measure.temperature) for x in (teacher, student)))
    torch.testing.assert_close((e - q * e.sum(-1, keepdim=True)) / measure.temperature, truth)


@pytest.mark.parametrize("beta", BETAS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(beta: float) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(97, 8, requires_grad=True)
    teacher = TeacherHead(hidden.detach().clone(), weight.detach().clone())
    _, div = token_divergence(hidden, weight, None, torch.zeros(6).long(), teacher, Divergence(beta, 1.5))
    div.sum().backward()
    assert float(div.detach().abs().max()) < 1e-6
    assert hidden.grad is not None and float(hidden.grad.abs().max()) < 1e-6


def test_the_middle_goes_over_into_the_ends() -> None:
    teacher, student = torch.randn(2, 3, 11, dtype=torch.float64).unbind()
    near = 1e-6
    forward, reverse = (divergence.reference(teacher, student, Divergence(beta)) for beta in (0.0, 1.0))
    low, high = (divergence.reference(teacher, student, Divergence(beta)) for beta in (near, 1 - near))
    torch.testing.assert_close(low / near, forward, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(high / near, reverse, rtol=1e-4, atol=1e-6)


def test_at_a_high_temperature_its_square_makes_logits_match() -> None:
    """T² KL goes to half the squared distance of the centred logits over V (arXiv:1503.02531)."""
    teacher, student = torch.randn(2, 3, 11, dtype=torch.float64).unbind()
    found = 1e8 * divergence.reference(teacher, student, Divergence(0.0, 1e4))
    apart = teacher - student
    centred = apart - apart.mean(-1, keepdim=True)
    torch.testing.assert_close(found, (centred**2).sum(-1) / 22, rtol=1e-3, atol=1e-6)


def leaves_of(case: dict[str, Any]) -> list[Tensor]:
    tensors = (case["hidden_ND"], case["weight_VD"], case["bias_V"])
    return [t.clone().requires_grad_() for t in tensors if t is not None]


def arguments(case: dict[str, Any], leaves: list[Tensor]) -> tuple[Any, ...]:
    bias = leaves[2] if len(leaves) == 3 else None
    return leaves[0], leaves[1], bias, case["target_N"], case["teacher"], case["measure"]


@pytest.mark.parametrize("case", head.cases())
def test_the_head_has_the_values_of_the_definition_and_passes_gradcheck(case: dict[str, Any]) -> None:
    leaves = leaves_of(case)

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return token_divergence(*arguments(case, list(tensors)), shape=case["shape"], chunk=case["chunk"])

    for found, true in zip(
        run(*leaves), head.reference(*arguments(case, leaves), shape=case["shape"]), strict=True
    ):
        torch.testing.assert_close(found, true)
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("case", head.cases())
def test_the_linear_loss_has_the_gradients_of_autograd_through_the_definition(case: dict[str, Any]) -> None:
    of_logp = torch.tensor([-1.0, 0.5, 0.0, -2.0, 3.0], dtype=torch.float64)
    of_divergence = torch.tensor([0.0, 2.0, 1.0, 0.3, -1.0], dtype=torch.float64)
    leaves, again = leaves_of(case), leaves_of(case)
    loss, logp, div = head.linear_loss(
        *arguments(case, leaves), of_logp, of_divergence, shape=case["shape"], chunk=case["chunk"]
    )
    true_logp, true_div = head.reference(*arguments(case, again), shape=case["shape"])
    truth = (of_logp * true_logp + of_divergence * true_div).sum()
    for found, true in ((loss, truth), (logp, true_logp), (div, true_div)):
        torch.testing.assert_close(found.detach(), true.detach())
    ours = torch.autograd.grad(loss / 7, leaves)
    for gradient, true in zip(ours, torch.autograd.grad(truth / 7, again), strict=True):
        torch.testing.assert_close(gradient, true)


@pytest.mark.parametrize("beta", BETAS)
def test_top_tokens_are_a_lower_bound_that_is_met_when_they_are_all(beta: float) -> None:
    torch.manual_seed(1)
    teacher, student = 2 * torch.randn(2, 5, 11, dtype=torch.float64)
    measure, last = Divergence(beta, 1.3), torch.zeros(5, dtype=torch.float64)
    logp = log_softmax(teacher, 1.3)
    full = divergence.reference(teacher, student, measure)
    for k in (1, 3, 10, 11):
        ids = teacher.topk(k).indices
        _, found = head.of_logits(
            student, torch.zeros(5).long(), TopTokens(ids, bucketed(logp, ids)), measure
        )
        torch.testing.assert_close(found, divergence.reference(teacher, student, measure, ids))
        assert bool((found <= full + 1e-12).all()) and bool((found >= last - 1e-12).all())
        last = found
    torch.testing.assert_close(last, full)


@pytest.mark.parametrize("beta", BETAS)
def test_tokens_that_are_forbidden_give_no_nan(beta: float) -> None:
    teacher, student = torch.randn(2, 3, 11)
    teacher[:, 4:6], student[:, 5:7] = -torch.inf, -torch.inf
    student.requires_grad_()
    _, div = head.of_logits(student, torch.zeros(3).long(), TeacherLogits(teacher), Divergence(beta))
    div.sum().backward()
    assert bool(div.isfinite().all()) and student.grad is not None and bool(student.grad.isfinite().all())


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("linear", [False, True])
def test_no_tensor_holds_the_logits_of_more_than_a_chunk(linear: bool) -> None:
    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(503, 8)
    teacher, measure = TeacherHead(torch.randn(64, 16), torch.randn(503, 16)), Divergence(0.5)
    target = torch.randint(503, (64,))
    with Largest() as seen:
        if linear:
            ones = torch.ones(64)
            head.linear_loss(hidden, weight, None, target, teacher, measure, ones, ones, chunk=8)[
                0
            ].backward()
        else:
            sum(token_divergence(hidden, weight, None, target, teacher, measure, chunk=8)).sum().backward()  # type: ignore[union-attr]
    assert (
        hidden.grad is not None and seen.elements <= 503 * 16
    )  # the weights themselves; all logits: 503 * 64


def test_bf16_rounds_like_plain_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight, theirs, their_weight = (
        torch.randn(*size, generator=generator).bfloat16() * 0.5
        for size in ((32, 16), (503, 16), (32, 24), (503, 24))
    )
    target, shape = torch.randint(503, (32,), generator=generator), LogitShape(softcap=5.0)

    def gradients(dtype: torch.dtype, ours: bool) -> list[Tensor]:
        leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in (hidden, weight)]
        op: Any = token_divergence if ours else head.reference
        teacher = TeacherHead(theirs.to(dtype), their_weight.to(dtype))
        logp, div = op(*leaves, None, target, teacher, Divergence(0.5, 2.0), shape)
        assert logp.dtype == div.dtype == wide(leaves[0])
        (div - 0.5 * logp).sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    for mine, plain, true in zip(
        gradients(torch.bfloat16, True),
        gradients(torch.bfloat16, False),
        gradients(torch.float64, False),
        strict=True,
    ):
        error, their_error = ((x.double() - true).norm() / true.norm() for x in (mine, plain))
        assert error <= 2 * their_error


def test_no_predictions_keep_the_graph() -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    none, teacher = torch.zeros(0, dtype=torch.int64), TeacherHead(torch.zeros(0, 4), torch.randn(11, 4))
    logp, div = token_divergence(hidden, weight, None, none, teacher, Divergence())
    (logp.sum() + div.sum()).backward()
    assert weight.grad is not None and not weight.grad.any()

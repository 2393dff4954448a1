"""Both tiers of the head against their definition: values, gradients, rounding."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.kernels.logprob import LogitShape, cases, linear_loss, reference, token_logprobs


def _leaves(case: dict[str, Any]) -> list[torch.Tensor]:
    tensors = (case["hidden_ND"], case["weight_VD"], case["bias_V"])
    return [t.clone().requires_grad_() for t in tensors if t is not None]


def _call(case: dict[str, Any], leaves: list[torch.Tensor]) -> tuple[Any, ...]:
    bias = leaves[2] if len(leaves) == 3 else None
    return leaves[0], leaves[1], bias, case["target_N"]


@pytest.mark.parametrize("case", cases())
def test_token_logprobs_gradcheck_and_values(case: dict[str, Any]) -> None:
    leaves = _leaves(case)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return token_logprobs(*_call(case, list(tensors)), case["shape"], case["chunk"])

    torch.testing.assert_close(run(*leaves), reference(*_call(case, leaves), case["shape"]))
    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("case", cases())
def test_linear_loss_equals_autograd_through_the_reference(case: dict[str, Any]) -> None:
    coefficient = torch.tensor([-1.0, 0.5, 0.0, -2.0, 3.0], dtype=torch.float64)
    leaves, again = _leaves(case), _leaves(case)
    loss, logp = linear_loss(*_call(case, leaves), coefficient, case["shape"], case["chunk"])
    truth_logp = reference(*_call(case, again), case["shape"])
    truth = (coefficient * truth_logp).sum()
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(logp, truth_logp.detach())
    assert not logp.requires_grad
    # the incoming gradient must be honoured: the trainer divides the loss by a global count
    ours = torch.autograd.grad(loss / 7, leaves)
    for grad, expected in zip(ours, torch.autograd.grad(truth / 7, again), strict=True):
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("tier", ["token", "linear"])
def test_no_predictions_keep_the_graph_and_give_zero_gradients(tier: str) -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64)
    if tier == "token":
        loss = token_logprobs(hidden, weight, None, target).sum()
    else:
        loss = linear_loss(hidden, weight, None, target, torch.zeros(0))[0]
    loss.backward()
    assert loss == 0 and weight.grad is not None and not weight.grad.any()


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(11, 4)
    loss, _ = linear_loss(hidden, weight, None, torch.tensor([1, 2, 3]), torch.ones(3))
    loss.backward()
    assert weight.grad is None and hidden.grad is not None


@pytest.mark.parametrize("tier", ["token", "linear"])
@pytest.mark.parametrize("shape", [LogitShape(), LogitShape(0.5, 3.0)])
def test_bf16_error_is_at_most_twice_that_of_plain_torch(tier: str, shape: LogitShape) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(64, 32, generator=generator).bfloat16()
    weight = torch.randn(503, 32, generator=generator).bfloat16() * 0.3
    target = torch.randint(503, (64,), generator=generator)

    def gradients(dtype: torch.dtype, ours: bool) -> list[torch.Tensor]:
        leaves = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        if not ours:
            loss = -reference(leaves[0], leaves[1], None, target, shape).sum()
        elif tier == "token":
            loss = -token_logprobs(leaves[0], leaves[1], None, target, shape, 16).sum()
        else:
            loss = linear_loss(leaves[0], leaves[1], None, target, -torch.ones(64), shape, 16)[0]
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    truth = gradients(torch.float64, ours=False)
    plain = gradients(torch.bfloat16, ours=False)
    for mine, other, exact in zip(gradients(torch.bfloat16, ours=True), plain, truth, strict=True):
        floor = 1e-6 * exact.norm()  # where plain torch happens to be exact
        assert (mine.double() - exact).norm() <= 2 * (other.double() - exact).norm() + floor


@pytest.mark.parametrize("tier", ["token", "linear"])
def test_chunks_change_nothing_and_a_chunk_is_all_the_memory_there_is(tier: str) -> None:
    """Values do not depend on how predictions are cut; no tensor is larger than one chunk of logits or the head."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(70, 8, generator=generator), torch.randn(1000, 8, generator=generator)
    target = torch.randint(1000, (70,), generator=generator)

    def run(chunk: int | None) -> list[torch.Tensor]:
        leaf = hidden.clone().requires_grad_()
        if tier == "token":
            logp = token_logprobs(leaf, weight, None, target, chunk=chunk)
            (-logp.sum()).backward()
        else:
            loss, logp = linear_loss(leaf, weight, None, target, -torch.ones(70), chunk=chunk)
            loss.backward()
        assert leaf.grad is not None
        return [logp.detach(), leaf.grad]

    with _LargestTensor() as seen:
        cut = run(16)
    assert seen.num_elements == 14 * 1000  # five chunks of one size, not four and a rest
    for other in (run(1), run(33), run(None)):
        torch.testing.assert_close(other, cut, rtol=1e-5, atol=1e-6)


def test_a_second_backward_pass_is_refused() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    loss, _ = linear_loss(hidden, torch.randn(11, 4), None, torch.tensor([1, 2, 3]), torch.ones(3))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="keeps its gradient for one backward pass"):
        loss.backward()


class _LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation gives back."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.num_elements = max(self.num_elements, result.numel())
        return result

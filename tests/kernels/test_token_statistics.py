"""Statistics of each prediction's distribution against their definition: values, gradients, memory, bf16."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.kernels.logprob import token_logprobs
from luthier.kernels.token_statistics import Statistic, cases, of_logits, reference, token_statistics

NAMES: tuple[Statistic, ...] = ("logz", "mean_logp", "entropy", "log_squares", "top_entropy", "is_top")
SMOOTH = ("logp", "logz", "mean_logp", "entropy", "log_squares")


def leaves_of(case: dict[str, Any]) -> list[torch.Tensor]:
    tensors = (case["hidden_ND"], case["weight_VD"], case["bias_V"])
    return [t.clone().requires_grad_() for t in tensors if t is not None]


def run(
    case: dict[str, Any], leaves: list[torch.Tensor], names: tuple[Statistic, ...]
) -> dict[str, torch.Tensor]:
    bias = leaves[2] if len(leaves) == 3 else None
    return token_statistics(leaves[0], leaves[1], bias, case["target_N"], names, case["shape"], case["chunk"])


def definition(
    case: dict[str, Any], leaves: list[torch.Tensor], names: tuple[Statistic, ...]
) -> dict[str, torch.Tensor]:
    bias = leaves[2] if len(leaves) == 3 else None
    return reference(leaves[0], leaves[1], bias, case["target_N"], names, case["shape"])


@pytest.mark.parametrize("case", cases())
def test_values_and_gradients_are_those_of_the_definition(case: dict[str, Any]) -> None:
    ours, theirs = leaves_of(case), leaves_of(case)
    found, truth = run(case, ours, NAMES), definition(case, theirs, NAMES)
    assert found.keys() == truth.keys() == {"logp", *NAMES}
    for name in found:
        torch.testing.assert_close(found[name], truth[name])
        assert found[name].requires_grad == (name in SMOOTH)
    generator = torch.Generator().manual_seed(4)
    weights = {n: torch.randn(len(case["target_N"]), generator=generator).double() for n in SMOOTH}
    mixed, expected = (torch.stack([w * v[n] for n, w in weights.items()]).sum() for v in (found, truth))
    for one, other in zip(
        torch.autograd.grad(mixed, ours), torch.autograd.grad(expected, theirs), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("case", [cases()[i] for i in (0, 15, 16)])
def test_gradcheck(case: dict[str, Any], name: str) -> None:
    names: tuple[Any, ...] = () if name == "logp" else (name,)
    assert torch.autograd.gradcheck(lambda *tensors: run(case, list(tensors), names)[name], leaves_of(case))


def test_by_hand() -> None:
    shares = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
    found = of_logits(shares.log() + 2.0, torch.tensor([1, 2]), NAMES)
    assert found["logz"].tolist() == pytest.approx([2.0, 2.0])
    assert found["mean_logp"].tolist() == pytest.approx([-5 / 3 * math.log(2), math.log(0.008) / 3])
    assert found["entropy"][0] == pytest.approx(1.5 * math.log(2))
    assert found["log_squares"].tolist() == pytest.approx([math.log(0.375), math.log(0.66)])
    assert found["top_entropy"][0] == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert found["is_top"].tolist() == [0.0, 1.0]


def test_only_the_twenty_likeliest_tokens_count_for_the_gate() -> None:
    logits = torch.full((2, 50), -30.0, dtype=torch.float64)
    logits[0, :20] = 3.0
    logits[1, :40] = 3.0
    gate = of_logits(logits, torch.tensor([0, 0]), ("top_entropy",))["top_entropy"]
    assert gate.tolist() == pytest.approx([1.0, 1.0])
    one = of_logits(torch.tensor([[9.0]]), torch.tensor([0]), NAMES)
    assert one["top_entropy"].item() == 0.0 and one["is_top"].item() == 1.0


def test_log_probabilities_are_those_of_the_plain_head_bit_for_bit() -> None:
    """So a method that also asks for something is the same method."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(70, 8, generator=generator), torch.randn(1000, 8, generator=generator)
    target = torch.randint(1000, (70,), generator=generator)
    leaves = [hidden.clone().requires_grad_(), hidden.clone().requires_grad_()]
    plain = token_logprobs(leaves[0], weight, None, target, chunk=16)
    found = token_statistics(leaves[1], weight, None, target, ("log_squares", "is_top"), chunk=16)["logp"]
    assert torch.equal(plain, found)
    one, other = (
        torch.autograd.grad(v.sum(), leaf)[0] for v, leaf in zip((plain, found), leaves, strict=True)
    )
    assert torch.equal(one, other)


def test_chunks_change_nothing_and_a_chunk_is_all_the_memory_there_is() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(70, 8, generator=generator), torch.randn(1000, 8, generator=generator)
    target = torch.randint(1000, (70,), generator=generator)

    def gone(chunk: int) -> list[torch.Tensor]:
        leaf = hidden.clone().requires_grad_()
        found = token_statistics(leaf, weight, None, target, NAMES, chunk=chunk)
        torch.stack([found[name].sum() for name in SMOOTH]).sum().backward()
        assert leaf.grad is not None
        return [*(v.detach() for v in found.values()), leaf.grad]

    with _LargestTensor() as seen:
        cut = gone(16)
    assert seen.num_elements == 14 * 1000
    for other in (gone(1), gone(33)):
        torch.testing.assert_close(other, cut, rtol=1e-5, atol=1e-5)


def test_bf16_error_is_at_most_twice_that_of_plain_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(64, 32, generator=generator).bfloat16()
    weight = torch.randn(503, 32, generator=generator).bfloat16() * 0.3
    target = torch.randint(503, (64,), generator=generator)

    def values(dtype: torch.dtype, ours: bool) -> list[torch.Tensor]:
        leaves = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        case = {"target_N": target, "shape": cases()[0]["shape"], "chunk": 16}
        found = (run if ours else definition)(case | {"bias_V": None}, leaves, NAMES)
        mixed = torch.stack([found[name].sum() for name in SMOOTH]).sum()
        return [*(found[n].detach() for n in SMOOTH), *torch.autograd.grad(mixed, leaves)]

    truth, plain = values(torch.float64, ours=False), values(torch.bfloat16, ours=False)
    for mine, other, exact in zip(values(torch.bfloat16, ours=True), plain, truth, strict=True):
        floor = 1e-6 * exact.norm()
        assert (mine.double() - exact).norm() <= 2 * (other.double() - exact).norm() + floor


def test_no_predictions_keep_the_graph() -> None:
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    found = token_statistics(hidden, weight, None, torch.zeros(0, dtype=torch.int64), NAMES)
    torch.stack([found[name].sum() for name in SMOOTH]).sum().backward()
    assert weight.grad is not None and not weight.grad.any()


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

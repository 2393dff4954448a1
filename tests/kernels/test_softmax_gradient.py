"""The head's elementwise part on the CPU: C++ and plain torch against the definition, at -inf, far out, strided."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cpu_paths import PATHS, on_path
from kernel_parts import DTYPES, assert_accurate, gradients, intact, strided
from luthier.kernels import native
from luthier.kernels import softmax_gradient as head
from luthier.kernels.softmax_gradient import LogitShape

NUM_CASES = len(head.cases())
SHAPES = [LogitShape(), LogitShape(0.5, 3.0)]


def oracle(case: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    """logp and the gradient of Σ coefficient · logp, by autograd through the definition in `dtype`."""
    logits = case["logits_CV"].to(dtype)

    def run(logits: Tensor) -> Tensor:
        return head.reference(logits, case["target_C"], case["shape"])

    wide = torch.promote_types(dtype, torch.float32)
    return gradients(run, [logits], case["coefficient_C"].to(wide))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(NUM_CASES))
def test_values_and_gradients_are_those_of_the_reference(index: int, dtype: torch.dtype, path: str) -> None:
    case = head.cases(dtype)[index]
    logits, target, coefficient, shape = case.values()
    truth, plain = oracle(case, torch.float64), oracle(case, dtype)
    with on_path(path):
        logp, logz = head.forward(strided(logits), target, shape)
        assert logp.dtype == logz.dtype == torch.float32
        apart, together = strided(logits), strided(logits)
        assert head.gradient_(apart, logz, target, coefficient, shape) is apart
        logp_again, grad = head.logp_and_gradient_(together, target, coefficient, shape)
    assert grad is together and intact(apart) and intact(together)
    assert torch.equal(apart, together) and torch.equal(logp, logp_again)
    assert_accurate(logp, truth[0], plain[0])
    assert_accurate(grad, truth[1], plain[1])


@pytest.mark.parametrize("index", range(NUM_CASES))
def test_fp64_equals_autograd(index: int) -> None:
    case = head.cases()[index]
    logits, target, coefficient, shape = case.values()
    truth = oracle(case, torch.float64)
    found = head.logp_and_gradient_(logits.clone(), target, coefficient, shape)
    torch.testing.assert_close(found, tuple(truth), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_vocabulary_is_summed_accurately(shape: LogitShape, dtype: torch.dtype, path: str) -> None:
    """151,936 logits of about one size: a plain fp32 running sum would lose four digits."""
    logits = 0.1 * torch.randn(2, 151_936, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.tensor([0, 151_935])
    exact = torch.logsumexp(shape(logits.double()), -1)
    with on_path(path):
        _, logz = head.forward(logits, target, shape)
        assert (logz.double() - exact).abs().max() <= 2e-6
        grad = head.gradient_(logits.float(), logz, target, torch.ones(2), LogitShape())
    if shape == LogitShape():
        assert grad.double().sum(-1).abs().max() <= 1e-5  # a shift of all logits changes nothing


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_masked_logits_get_exactly_nothing(dtype: torch.dtype, path: str) -> None:
    """-inf anywhere, also before the first finite logit and in whole blocks; very unlike logits; a sure target."""
    logits = torch.full((3, 5000), -torch.inf)
    logits[0, 4000:4003] = torch.tensor([1.0, 2.0, 3.0])
    logits[1] = 0.0
    logits[1, 7] = 6e4
    logits[2, :2] = torch.tensor([0.0, -6e4])
    target, coefficient = torch.tensor([4001, 7, 0]), torch.tensor([1.0, 2.0, 3.0])
    given = logits.to(dtype)
    expected = torch.log_softmax(given.double(), -1)
    with on_path(path):
        logp, grad = head.logp_and_gradient_(given.clone(), target, coefficient, LogitShape())
    torch.testing.assert_close(logp.double(), expected.gather(1, target[:, None])[:, 0], rtol=1e-6, atol=1e-6)
    truth = torch.nn.functional.one_hot(target, 5000) - expected.exp()
    tolerance = {torch.bfloat16: 5e-3, torch.float16: 5e-4}.get(dtype, 1e-6)
    torch.testing.assert_close(grad.double(), truth * coefficient[:, None], rtol=tolerance, atol=1e-7)
    assert not grad[given == -torch.inf].any()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("column", [0, 3, 1500])
def test_a_broken_logit_shows(broken: float, column: int, path: str) -> None:
    logits = torch.zeros(2, 2000)
    logits[0, column] = broken
    with on_path(path):
        logp, grad = head.logp_and_gradient_(logits, torch.tensor([5, 5]), torch.ones(2), LogitShape())
    assert not logp[0].isfinite() and grad[0].isnan().any()
    assert logp[1].isfinite() and grad[1].isfinite().all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("target", [-100, 11])
def test_a_target_outside_the_vocabulary_is_refused(target: int, path: str) -> None:
    logits, targets = torch.zeros(2, 11), torch.tensor([3, target])
    with on_path(path), pytest.raises((IndexError, RuntimeError), match=r"index|within the 11 logits"):
        head.logp_and_gradient_(logits, targets, torch.ones(2), LogitShape())


@given(
    rows=st.integers(0, 5),
    vocabulary=st.integers(1, 3000),
    spread=st.floats(0.0, 50.0),
    shift=st.floats(-1e3, 1e3),
    shape=st.sampled_from(SHAPES),
)
def test_cpp_equals_plain_torch(
    rows: int, vocabulary: int, spread: float, shift: float, shape: LogitShape
) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread + shift
    target = torch.randint(vocabulary, (rows,), generator=generator)
    coefficient = torch.randn(rows, generator=generator)
    ours = head.logp_and_gradient_(logits.clone(), target, coefficient, shape)
    with native.disabled():
        plain = head.logp_and_gradient_(logits.clone(), target, coefficient, shape)
    # logits near 1,000 are 6e-5 apart in fp32, and a log-probability is a difference of two
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=3e-4)


def test_the_same_bits_each_time_and_with_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 5000, generator=generator)
    target, coefficient = torch.randint(5000, (9,), generator=generator), torch.randn(9, generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            logp, grad = head.logp_and_gradient_(logits.clone(), target, coefficient, LogitShape())
            found.append(torch.cat((logp[:, None], grad), 1))
    finally:
        torch.set_num_threads(before)
    if native.library() is None:
        found = found[:2]  # plain torch promises only the first
    assert all(torch.equal(one, found[0]) for one in found)

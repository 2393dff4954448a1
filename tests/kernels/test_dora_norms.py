"""DoRA's norms without the matrix are the norms of the matrix."""

import pytest
import torch

from luthier.kernels.dora import cases, reference, row_norms


@pytest.mark.parametrize("case", range(len(cases())))
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
def test_they_are_the_lengths_of_the_rows(case: int, dtype: torch.dtype, rtol: float) -> None:
    settings = cases()[case]
    expected = reference(**settings)  # pyright: ignore[reportArgumentType]
    weight = settings["weight_MK"]
    assert isinstance(weight, torch.Tensor)
    found = row_norms(**{**settings, "weight_MK": weight.to(dtype)})  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=0)


def test_an_update_that_takes_all_of_a_row_leaves_no_nan() -> None:
    a_RK, weight_MK = torch.eye(3), torch.randn(2, 3)
    assert torch.isfinite(row_norms(weight_MK, a_RK, -weight_MK, 1.0)).all()

"""Buffers that are kept between calls: the same memory for the same name, more where more is asked for."""

import torch

from luthier.kernels.workspace import Workspace


def test_a_name_gets_the_same_memory_until_it_needs_more() -> None:
    workspace, like = Workspace(), torch.empty(0)
    first = workspace.take("x", 4, 6, like=like)
    assert first.shape == (4, 6) and first.is_contiguous()
    assert workspace.take("x", 3, 8, like=like).data_ptr() == first.data_ptr()
    assert workspace.take("x", 5, 6, like=like).shape == (5, 6)
    assert workspace.num_bytes == 5 * 6 * 4


def test_names_and_dtypes_do_not_share() -> None:
    workspace, like = Workspace(), torch.empty(0)
    taken = [
        workspace.take("x", 8, like=like),
        workspace.take("y", 8, like=like),
        workspace.take("x", 8, like=like, dtype=torch.bfloat16),
    ]
    assert len({tensor.data_ptr() for tensor in taken}) == 3
    assert taken[2].dtype is torch.bfloat16
    workspace.clear()
    assert workspace.num_bytes == 0


def test_nothing_is_a_size_too() -> None:
    assert Workspace().take("x", 0, 7, like=torch.empty(0)).shape == (0, 7)

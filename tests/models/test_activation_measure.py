"""What layers save is measured by one pass: whatever they save, and without a trace if it fails."""

from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.models.activations.plain import measure
from luthier.models.policy import Policy
from tiny_models import tiny_llama


class Thinned(torch.nn.Module):
    """A layer beside which a sparse weight works, as shira and frod have it."""

    def __init__(self, base: Any):
        super().__init__()
        self.base = base
        index = torch.tensor([[0, 1, 2], [3, 4, 5]])
        self.values = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        size = self.base.out_features, self.base.in_features
        weight = torch.sparse_coo_tensor(self.index, self.values, size)
        return self.base(x) + torch.sparse.mm(weight, x.flatten(0, -2).T).T.view(*x.shape[:-1], size[0])


def test_sparse_tensors_count_with_what_they_consist_of() -> None:
    model = tiny_llama()
    layers = list(model.model.layers)
    before = measure(Policy(model, "packed"), layers)
    layers[0].self_attn.o_proj = Thinned(layers[0].self_attn.o_proj)
    after = measure(Policy(model, "packed"), layers)
    assert after[0][0] >= before[0][0] and after[1:] == before[1:]


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    model = tiny_llama()
    policy, layers = Policy(model, "packed"), list(model.model.layers)
    expected = measure(policy, layers)

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    hook = layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        measure(policy, layers)
    hook.remove()
    x = torch.ones(3, requires_grad=True)
    (x * x).sum().backward()  # a hook that still held would be asked for what it never kept
    assert x.grad is not None and measure(policy, layers) == expected

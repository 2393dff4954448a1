"""What the start says of a GPU on which torch's flash attention cannot run a model."""

from typing import Any

import pytest
import torch

from luthier.training.model import _no_flash
from tiny_models import build, tiny_gemma2, tiny_gpt2, tiny_llama

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("make", "capability", "dtype", "said"),
    [
        (tiny_llama, (8, 0), torch.bfloat16, ""),
        (tiny_gpt2, (8, 0), torch.bfloat16, ""),
        (tiny_llama, (7, 5), torch.float16, "compute capability 7.5"),
        (tiny_llama, (9, 0), torch.float32, "the model is in float32"),
        (tiny_gemma2, (9, 0), torch.bfloat16, "caps its attention scores"),
        (lambda: build("llama", head_dim=12), (9, 0), torch.bfloat16, "heads have 12 features"),
    ],
)
def test_the_reason_comes_from_the_model_and_the_gpu(
    make: Any, capability: tuple[int, int], dtype: torch.dtype, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    found = _no_flash(make(), dtype, GPU)
    assert said in found and bool(found) == bool(said)

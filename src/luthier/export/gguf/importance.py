"""Which columns of each matrix matter: the mean square of what they are multiplied with, over rows of data.

    importance_k = mean over tokens of x_k²      for y = W·x

A quantiser that knows it rounds W so that Σ_k importance_k·(W_k - W'_k)² is small, which is the expected square of the
error in y if the x_k are uncorrelated.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.export.gguf.known import architecture
from luthier.models.load import load_model


def importance(folder: Path, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """For each linear layer's tensor in the file, by its name there: the mean squares of its inputs, [K] in fp32.

    Args:
        folder: the model, as it is written into the file.
        rows: tokens of rows of data.

    Stacked experts are no layers of their own and have none. A head that is tied to the embeddings has none either:
    embeddings are looked up.
    """
    model = load_model(folder, torch.float32, torch.device("cpu"))
    known = architecture(model.config)
    sums: dict[str, Tensor] = {}
    hooks = []
    tied = bool(model.config.tie_word_embeddings)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and not (tied and path == "lm_head"):
            ((name, _),) = known.changed(f"{path}.weight", torch.empty(module.weight.shape, device="meta"))
            hooks.append(module.register_forward_pre_hook(_adder(sums, known.name_of(name))))
    count = sum(len(row) for row in rows)
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([list(row)]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: (total / count).float().numpy() for name, total in sums.items()}


def _adder(sums: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any], None]:
    def add(module: nn.Module, given: Any) -> None:
        squares = given[0].double().square().reshape(-1, given[0].shape[-1]).sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    return add

"""Embeddings and heads that are frozen but for the rows of a few tokens: what PEFT calls trainable tokens.

Shape suffixes: T tokens of the input, V vocabulary, D hidden size, N tokens with rows of their own.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.lora_targets import input_embeddings, inside, is_linear, output_embeddings
from luthier.models.quantised.embeddings import StoredEmbedding, StoredHead

_MULTIPLE = 8
"""GPUs multiply fast where the inner size is a multiple of this."""


class TokenRows(nn.Module):
    """An embedding, or a head, whose rows for some tokens are kept and trained apart from the others.

    `rows` [N, D] are fp32 masters; they stand in the place of `base.weight[tokens]`, which stays as it is for
    `disable_adapters`. An embedding and a head that share their weights share `rows`. Attributes that are not
    found here are the base's; `weight` is the weight in effect.
    """

    def __init__(self, base: nn.Module, tokens: Sequence[int], rows: nn.Parameter | None = None):
        """`rows`: those of the module that this one is tied to; absent: the base's own to begin with.

        Raises ModelError if the base does something else than a lookup or a product.
        """
        super().__init__()
        self.scale = scale_of(base)
        weight_VD = base.weight
        assert isinstance(weight_VD, Tensor)
        self.base = base.requires_grad_(False)
        self.enabled = True
        index_N = torch.tensor(list(tokens), device=weight_VD.device)
        place_V = torch.full((len(weight_VD),), -1, device=weight_VD.device)
        place_V[index_N] = torch.arange(len(index_N), device=weight_VD.device)
        self.register_buffer("index_N", index_N, persistent=False)
        self.register_buffer("place_V", place_V, persistent=False)
        if rows is None:
            wide = torch.promote_types(weight_VD.dtype, torch.float32)
            rows = nn.Parameter(weight_VD.detach()[index_N].to(wide))
        self.rows = rows

    @property
    def tokens(self) -> list[int]:
        """Ids of the tokens with rows of their own, in the order of these."""
        return self.get_buffer("index_N").tolist()

    @property
    def weight(self) -> Tensor:
        """The weight in effect, [V, D], in the base's dtype; differentiable in `rows`."""
        weight_VD = self._base_weight()
        if not self.enabled:
            return weight_VD
        return weight_VD.index_copy(0, self.get_buffer("index_N"), self.rows.to(weight_VD.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The base's output with what belongs to the tokens replaced: looked-up rows, or logits."""
        found = self.base(x)
        if not self.enabled:
            return found
        rows_ND = self.rows.to(self._base_weight().dtype)
        if is_linear(self.base):
            index_N, bias_V = self.get_buffer("index_N"), self.base.bias
            bias_N = bias_V[index_N] if isinstance(bias_V, Tensor) else None
            return found.index_copy(-1, index_N, F.linear(x, rows_ND, bias_N))
        place_T = self.get_buffer("place_V")[x]
        return torch.where(
            place_T[..., None] >= 0, F.embedding(place_T.clamp(min=0), rows_ND) * self.scale, found
        )

    def widened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight [V, D + N] whose product are the head's logits without bias.

        The second factor is constant, so that no gradient of the size of the vocabulary is ever formed:
        x · Wᵀ + (x · (rows - W[tokens])ᵀ) placed where these tokens are.
        """
        weight_VD = self._base_weight()
        x = x.to(weight_VD.dtype)
        if not self.enabled:
            return x, weight_VD
        index_N = self.get_buffer("index_N")
        change_ND = (self.rows - weight_VD[index_N].to(self.rows.dtype)).to(x.dtype)
        more = F.pad(x @ change_ND.T, (0, -len(index_N) % _MULTIPLE))
        places_VN = weight_VD.new_zeros(len(weight_VD), more.shape[-1])
        places_VN[index_N, torch.arange(len(index_N), device=index_N.device)] = 1
        return torch.cat([x, more], -1), torch.cat([weight_VD, places_VN], 1)

    def merge(self) -> nn.Module:
        """Writes the rows into the base's weight, rounded once, and returns the base."""
        with torch.no_grad():
            weight_VD = self._base_weight()
            weight_VD[self.get_buffer("index_N")] = self.rows.to(weight_VD.dtype)
        return self.base

    def extra_repr(self) -> str:
        return f"tokens={len(self.rows)}"

    def _base_weight(self) -> Tensor:
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def token_holders(model: nn.Module, saved: Iterable[str], adapted: Iterable[str]) -> list[list[str]]:
    """Names of the modules that hold a row for each token: embedding and head, in one list where they are tied.

    Those that are trained whole (`saved`) are left out. Raises ModelError if one has a low-rank adapter (`adapted`),
    for PEFT's format cannot hold both, or does something else than a lookup or a product.
    """
    found: dict[int, list[str]] = {}
    saved, adapted = list(saved), set(adapted)
    names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    for module in (input_embeddings(model), output_embeddings(model)):
        if module is None or inside(name := names[id(module)], saved):
            continue
        if name in adapted:
            raise ModelError(
                f"lora.target means {name}, which holds rows of new tokens, too; one module cannot have both. Leave "
                "it out of lora.target, train it whole (lora.modules_to_save), or leave out model.new_tokens."
            )
        scale_of(module)
        same = found.setdefault(id(module.weight), [])
        same += [name] if name not in same else []
    return list(found.values())


def scale_of(base: nn.Module) -> float:
    """What a head, or an embedding, multiplies its rows by. Raises ModelError if it does more than that."""
    if isinstance(base, StoredEmbedding | StoredHead):
        raise ModelError(
            "the embeddings and the head of this model are stored in few bits (quant.embeddings), so there can be no "
            "rows or adapters of their own beside them. Leave quant.embeddings out."
        )
    weight_VD = base.weight
    assert isinstance(weight_VD, Tensor)
    scale = float(getattr(base, "embed_scale", 1.0))
    with torch.no_grad():
        few = torch.arange(min(4, len(weight_VD)), device=weight_VD.device)
        if isinstance(base, nn.Linear) and is_linear(base):
            return 1.0
        if isinstance(base, nn.Embedding) and torch.allclose(base(few), weight_VD[few] * scale, rtol=0.02):
            return scale
    raise ModelError(
        f"the embeddings or the head of this model ({type(base).__name__}) do more than a lookup or a product, so rows "
        "of new tokens cannot be trained apart. Train them whole: name them in lora.modules_to_save."
    )

"""Weights in few bits of a model that has no numbers: as large as they will be, and nothing in them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.config.tree import Config
from luthier.kernels.quant.base import Scheme, Stored, store
from luthier.models.checkpoint_names import checkpoint_names
from luthier.models.quantised.as_they_are import AsTheyAre
from luthier.models.quantised.chosen import chosen
from luthier.models.quantised.linear import QuantLinear
from luthier.models.quantised.load import Quantisation, names_to_store
from luthier.models.quantised.packed import KEYS, PackedModel, packed_model
from luthier.models.quantised.tables import store_tables
from luthier.models.swap import put


def store_shapes(config: Config, model: PreTrainedModel) -> list[str]:
    """Puts stored layers where they will be, as `quant` or the model's own files have them; what was only reckoned.

    Raises:
        LuthierError: settings that do not fit the model, or a format that is not known.
    """
    if (quantisation := chosen(config)) is not None:
        _store(model, quantisation)
        return []
    stored = any(getattr(model.config, key, None) for key in KEYS)
    if not stored or config.model.unpack:
        return []
    folder = Path(config.model.name).expanduser()
    packed = packed_model(folder) if (folder / "config.json").is_file() else None
    if packed is None:
        return ["stored in few bits by others, but the files are not here: counted as if it were not"]
    _as_they_are(model, packed)
    return []


class _Shapes(Scheme):
    """Stands for a scheme where there are no numbers to store: as large as that one says, or as a file is."""

    def __init__(self, scheme: Scheme):
        self.scheme = scheme

    def encode(self, weight_MK: Tensor) -> dict[str, Tensor]:
        return _bytes(round(self.scheme.bits() * weight_MK.numel() / 8))

    def decode(self, parts: Mapping[str, Tensor], out_MK: Tensor) -> Tensor:
        return out_MK

    def why_not(self, num_out: int, num_in: int) -> str | None:
        return self.scheme.why_not(num_out, num_in)

    def why_no_rows(self, num_in: int) -> str | None:
        return self.scheme.why_no_rows(num_in)


def _bytes(number: int) -> dict[str, Tensor]:
    return {"codes": torch.empty(number, dtype=torch.uint8, device="meta")}


def _store(model: PreTrainedModel, quantisation: Quantisation) -> None:
    for name in sorted(names_to_store(model, quantisation)):
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        put(model, name, QuantLinear(store(_Shapes(quantisation.scheme), plain.weight), plain.bias))
    if quantisation.tables is not None:
        store_tables(model, _Shapes(quantisation.tables), quantisation.tables_name, quantisation.stays)


def _as_they_are(model: PreTrainedModel, packed: PackedModel) -> None:
    """By what the headers of the files say."""
    names = AsTheyAre(packed, model.dtype).names(model)
    on_disk = checkpoint_names(model, [f"{name}.weight" for name in packed.weights])
    for name in sorted(names):
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        parts = packed.weights[on_disk[f"{name}.weight"].removesuffix(".weight")]
        size = sum(one.end - one.start for one in parts.values())
        shape = plain.out_features, plain.in_features
        stored = Stored(_Shapes(Scheme()), _bytes(size), shape, plain.weight.dtype)
        put(model, name, QuantLinear(stored, plain.bias))

"""Which tensor of a checkpoint becomes which weight of the model.

transformers changes names while it loads (old names, missing or extra prefixes) and assembles some weights
from several tensors. This is the only place that asks for its tables; their form belongs to its version 5.
"""

from collections.abc import Iterable

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming


def checkpoint_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Name on disk by name in the model, for the tensors that are loaded as they are.

    Those that go through a conversion (stacked experts, split or permuted projections) are left out.
    `model` may lie on the meta device.
    """
    transforms = get_model_conversion_mapping(model)  # pyright: ignore[reportArgumentType]
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    known = set(model.state_dict())
    prefix = str(getattr(model, "base_model_prefix", ""))
    found: dict[str, str] = {}
    for name in sorted(names):  # some renamings wait for a name that sorts first
        renamed = name
        for renaming in renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        if not any(converter.rename_source_key(renamed)[1] is not None for converter in converters):
            found[_with_prefix(renamed, prefix, known)] = name
    return found


def _with_prefix(name: str, prefix: str, known: set[str]) -> str:
    """The name under which the model knows it; checkpoints may lack the decoder's prefix or have it once more."""
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        if candidate in known:
            return candidate
    return name

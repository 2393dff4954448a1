"""A model whose linear layers are put into few bits while it is read, one after the other.

transformers builds the model, renames and joins its tensors; its own extension point for quantisers hands each weight
over as soon as it is read. So there is never more of the model in 16 bits than one weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from luthier.allocator import give_back
from luthier.errors import ModelError
from luthier.kernels import eight_bits
from luthier.kernels.quant.base import Scheme, Stored, store
from luthier.kernels.workspace import Workspace
from luthier.models.lora_targets import inside, linear_names, named, output_embeddings
from luthier.models.quantised.as_they_are import AsTheyAre, Source, stand_ins
from luthier.models.quantised.linear import QuantLinear
from luthier.models.quantised.packed import KEYS, PackedModel, packed_model, quantisation_on_disk
from luthier.models.quantised.reader import lazy_tensors
from luthier.models.quantised.tables import check_tables, open_tables, store_tables, table_weights

HEADS = ("score", "classifier")
"""What transformers calls heads that score; they stay as they are, like the one that makes logits."""
LARGE = 1 << 20
"""A weight after which free memory goes back: what was made of it leaves holes between what is kept."""
METHOD = "luthier"
"""The name under which transformers finds the quantiser."""


@dataclass(frozen=True)
class Quantisation:
    """How a model is to be stored."""

    scheme: Scheme
    name: str
    """Of the scheme, for people."""
    skip: tuple[str, ...] = ()
    """Modules that stay as they are; a name stands for every module whose full name equals it or ends in it."""
    whole: tuple[str, ...] = ()
    """Modules that stay because they are trained whole, if there are such."""
    products: bool = False
    """Whether products with stored weights stay in 8 bits."""
    tables: Scheme | None = None
    """How embeddings and head are stored; None: not at all."""
    tables_name: str = ""
    """Of that scheme, for people."""

    @property
    def stays(self) -> tuple[str, ...]:
        """Embeddings and heads that are not stored by name."""
        return (*self.skip, *self.whole)


def load_quantised(
    auto: Any, folder: Path, dtype: torch.dtype, how: Quantisation | PackedModel, config: Any = None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model in `folder` with its linear layers stored, and what loading found. Embeddings and the layer that makes
    logits are stored only if `how` says so.

    Args:
        auto: the class of transformers that makes the model, such as AutoModelForCausalLM.
        dtype: of all other weights, and of all products.
        how: how its weights are to be stored, or how they are stored already.
        config: the model's configuration, if it is not the one in the folder.

    Raises:
        ModelError: no weight would be stored.
    """
    config = config or AutoConfig.from_pretrained(folder, local_files_only=True)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(_Quantizer)
    if isinstance(how, PackedModel):
        source: Source = AsTheyAre(how, dtype)
        lazy: Any = stand_ins(source)
        _forget_format(config)
    else:
        source, lazy = _Chosen(how), lazy_tensors(folder)
    options = {"dtype": dtype, "quantization_config": _Wanted(source), "output_loading_info": True}
    try:
        if lazy is None:
            model, found = auto.from_pretrained(folder, config=config, local_files_only=True, **options)
        else:
            with torch.device("meta"):
                kind = type(auto.from_config(config))
            model, found = kind.from_pretrained(None, config=config, state_dict=lazy, **options)
    except Exception as error:
        raise source.fault or error from error
    if lazy is not None:
        model.config.name_or_path = model.name_or_path = str(folder)
        if model.can_generate() and (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    _forget_quantizer(model)
    if isinstance(how, Quantisation) and how.tables is not None:
        store_tables(model, how.tables, how.tables_name, how.stays)
    scratch = Workspace()
    name, products = ("", False) if isinstance(how, PackedModel) else (how.name, how.products)
    for module in quantised(model).values():
        module.scratch, module.eight_bits = scratch, products
        if products and (why := eight_bits.why_not(module.stored)):
            raise ModelError(f"quant.products: products with {name} cannot stay in 8 bits: {why}.")
    if not quantised(model):
        raise ModelError(source.nothing())
    return model, found


def how_stored(folder: Path, wanted: Quantisation | None) -> Quantisation | PackedModel | None:
    """How the weights of the model in `folder` are to be kept: as they are stored there, as is wanted, or plain.

    Raises:
        ModelError: they are stored in few bits already, so others cannot be wanted; or in a format that is not known.
    """
    if wanted is not None and quantisation_on_disk(folder) is not None:
        raise ModelError(
            f"the model in {folder} is quantised already (quantization_config in its config.json) and is trained as "
            "it is. Leave out the section quant; or set model.unpack: true, to decode it first; or name the model "
            "that it was made from."
        )
    return wanted or packed_model(folder)


def quantised(model: nn.Module) -> dict[str, QuantLinear]:
    """The stored layers by full name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}


def open_all(model: nn.Module) -> None:
    """Puts a plain layer with the decoded weight into the place of every stored one."""
    for name, module in quantised(model).items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, module.opened())
    open_tables(model)


def num_weights(model: nn.Module) -> int:
    """Weights of the model, stored ones included."""
    weights = [*quantised(model).values(), *table_weights(model)]
    stored = sum(module.shape[0] * module.shape[1] for module in weights)
    return stored + sum(parameter.numel() for parameter in model.parameters())


def storage_note(model: nn.Module, name: str) -> str:
    """What a person should be told of the stored layers; empty if there are none."""
    stored = [module.stored for module in quantised(model).values()]
    if not stored:
        return ""
    rest = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    tables = [table.stored for table in table_weights(model)]
    return (
        f"{name}: {_taken(stored, f' of {len(stored)} linear layers')}; "
        + (f"embeddings and head: {_taken(tables)}; norms" if tables else "embeddings, norms")
        + f" and what else stays take {rest / 2**20:,.0f} MiB"
    )


def _taken(stored: Sequence[Stored], of: str = "") -> str:
    """How many weights these are and what they take."""
    weights, taken = sum(s.shape[0] * s.shape[1] for s in stored), sum(s.num_bytes for s in stored)
    return f"{weights:,} weights{of} in {8 * taken / weights:.2f} bits each, {taken / 2**20:,.0f} MiB"


def names_to_store(model: nn.Module, quantisation: Quantisation, section: str = "quant") -> set[str]:
    """Full names of the linear layers that will be stored. Raises ModelError for a name in `skip`, which stands in that
    section of the config, without a module."""
    paths = [path for path, _ in model.named_modules() if path]
    missing = [name for name in quantisation.skip if not any(named(name, path) for path in paths)]
    if missing:
        linear = ", ".join(sorted({name.rpartition(".")[2] for name in linear_names(model)}))
        raise ModelError(f"{section}.skip: no module is named {', '.join(missing)}. Linear layers: {linear}.")
    head = output_embeddings(model)
    stay = (*quantisation.skip, *quantisation.whole, *HEADS)
    skipped = {path for path in paths if any(named(name, path) for name in stay)}
    found = set()
    for name in linear_names(model):
        module = model.get_submodule(name)
        if type(module) is not nn.Linear or module is head or inside(name, skipped):
            continue
        if quantisation.scheme.why_not(module.out_features, module.in_features) is None:
            found.add(name)
    return found


class _Chosen:
    """Weights that are put into few bits as a config says."""

    fault: ModelError | None = None

    def __init__(self, quantisation: Quantisation):
        self.quantisation = quantisation

    def names(self, model: nn.Module) -> set[str]:
        how = self.quantisation
        if how.tables is not None:
            try:
                check_tables(model, how.tables, how.tables_name, how.stays)
            except ModelError as error:
                self.fault = error
                raise
        return names_to_store(model, how)

    def stored(self, value: Tensor) -> Stored:
        return store(self.quantisation.scheme, value)

    def nothing(self) -> str:
        return (
            f"quant: {self.quantisation.name} stores no layer of this model: it has no plain linear layer besides "
            "the one that makes logits and those of quant.skip. Leave out the section quant."
        )


class _Wanted(QuantizationConfigMixin):
    """What transformers carries to the quantiser."""

    def __init__(self, source: Source):
        self.quant_method: Any = METHOD
        self.source = source

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}


class _Quantizer(HfQuantizer):
    """Tells transformers which weights to hand over while it reads."""

    def __init__(self, quantization_config: QuantizationConfigMixin, **options: Any):
        super().__init__(quantization_config, **options)
        assert isinstance(quantization_config, _Wanted)
        self.source = quantization_config.source
        self.names: set[str] = set()

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> Any:
        self.names = self.source.names(model)
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        owner, _, leaf = param_name.rpartition(".")
        return leaf == "weight" and owner in self.names

    def get_quantize_ops(self) -> ConversionOps:
        return _Store(self.source)

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]
        return True


class _Store(ConversionOps):
    """Puts one weight into few bits and its layer into the place of the plain one."""

    def __init__(self, source: Source):
        self.source = source

    def convert(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_dict: dict[str, Any], model: Any = None, missing_keys: Any = None, **options: Any
    ) -> dict[str, Tensor]:
        for name, value in input_dict.items():
            owner, leaf = name.removesuffix(".weight").rpartition(".")[::2]
            plain = model.get_submodule(name.removesuffix(".weight"))
            try:
                stored = self.source.stored(value[0] if isinstance(value, list) else value)
                _check_shape(name, stored, plain)
            except ModelError as error:
                self.source.fault = error  # transformers would tell another one
                raise
            setattr(model.get_submodule(owner), leaf, QuantLinear(stored, plain.bias))
            if plain.in_features * plain.out_features >= LARGE:
                give_back()
            if missing_keys is not None:
                missing_keys.discard(name)
        return {}


def _check_shape(name: str, stored: Stored, plain: nn.Linear) -> None:
    if stored.shape != (plain.out_features, plain.in_features):
        raise ModelError(
            f"{name} is stored with {stored.shape[0]} outputs and {stored.shape[1]} inputs, but the model's "
            f"configuration has {plain.out_features} and {plain.in_features}. Download the model again."
        )


def _forget_format(config: Any) -> None:
    """Takes out of a configuration that its weights are stored: reading them is ours."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for key in KEYS:
            if hasattr(part, key):
                delattr(part, key)


def _forget_quantizer(model: Any) -> None:
    """Leaves a model of which transformers does not know that it is stored: moving and adapting it are ours."""
    model.hf_quantizer.remove_quantization_config(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module.config, "_is_quantized"):
            delattr(module.config, "_is_quantized")

"""What vLLM is given of a run or a model: the base model's folder, adapters beside it, and what is to be known of them.

vLLM reads the base model in the precision that it is stored in, and adapters as PEFT writes them. What it would pass
over, or replace by other weights than those that an adapter was trained on, is refused here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from luthier.errors import ConfigError
from luthier.export.adapter import settings_of
from luthier.export.serving.refusals import limit_for, refused_parts
from luthier.models.base import folder_of
from luthier.models.inference import KnownWords, Parts, ends_of, find_parts, template_of, tokenizer_of
from luthier.rollout.decoder import positions_of
from luthier.serve.opened import Asked
from luthier.serve.shelf import Offered, adapter_folder, defaults_of, numbers_of_token, offered_name


@dataclass(frozen=True)
class Base:
    """What is asked for, found."""

    parts: Parts
    folder: Path
    """The base model's."""
    config: Any
    """transformers' configuration of it."""
    offline: bool

    @property
    def dtype(self) -> str:
        """What the weights are stored in."""
        return str(self.config.get_text_config(decoder=True).dtype or "float32").removeprefix("torch.")

    @property
    def bytes_of_token(self) -> int:
        """Memory that the keys and values of one token take."""
        return numbers_of_token(self.config) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True)
class Served:
    """A base model with adapters."""

    shelf: dict[str, Offered]
    adapters: dict[str, Path]
    """The folders of those on the shelf that are adapters."""
    rank: int | None
    """The limit of ranks that vLLM is to be given; None: there are no adapters."""


def base_of(asked: Asked) -> Base:
    """The model that is asked for, or the base of the run.

    Raises:
        ConfigError: vLLM would compute another model than the one that was trained.
        ModelError: there is no such model, or the run has not finished.
    """
    parts = find_parts(asked.name)
    _refuse_few_bits(asked.name, parts)
    offline = asked.offline or parts.offline
    unpack = parts.config.model.unpack if parts.config else None
    folder = folder_of(parts.base, parts.revision, offline, unpack)
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    return Base(parts, folder, config, offline)


def served(asked: Asked, base: Base, room: int) -> Served:
    """All models that are asked for, with `room` for tokens of prompt and answer together.

    Raises:
        ConfigError: vLLM would compute another adapter than the one that was trained, or two have the same name.
    """
    name = asked.called or offered_name(asked.name)
    if name in asked.adapters:
        raise ConfigError(
            f"--adapter {name}=...: the model itself is called so; give the adapter another name"
        )
    named = {name: base.parts}
    named |= {label: _adapter(label, path, base.parts) for label, path in asked.adapters.items()}
    context = min(positions_of(base.config) or room, room)
    usual = defaults_of(_generation(base))
    shelf = {
        label: Offered(label, _words(base, own), usual, context, None if label == name else name)
        for label, own in named.items()
    }
    adapters = {label: own.adapter for label, own in named.items() if own.adapter is not None}
    ranks = [_rank(label, path) for label, path in adapters.items()]
    return Served(shelf, adapters, limit_for(max(ranks)) if ranks else None)


def _adapter(label: str, path: Path, base: Parts) -> Parts:
    """An adapter beside the base, with what it was trained with."""
    folder = adapter_folder(path)
    if folder is None:
        raise ConfigError(
            f"--adapter {label}={path}: there is no adapter_config.json in it or in its folder adapter/, so it is "
            "neither an adapter nor a run that trained one"
        )
    found = Parts(base.base, base.revision, folder, find_parts(str(path)).config)
    _refuse_few_bits(str(path), found)
    return found


def _rank(label: str, folder: Path) -> int:
    """An adapter's rank. Raises ConfigError for one that vLLM would not serve as it is."""
    settings: Mapping[str, Any] = settings_of(folder)
    if reasons := list(refused_parts(settings)):
        raise ConfigError(
            f"vLLM cannot serve the adapter of {label} beside its base model: {'; '.join(reasons)}. Merge it with "
            "luthier export --to vllm and serve that folder, or leave out --engine vllm."
        )
    return int(settings["r"])


def _refuse_few_bits(name: str, parts: Parts) -> None:
    config = parts.config
    for section in ("quant", "qat"):
        if config is not None and parts.adapter is not None and getattr(config, section) is not None:
            raise ConfigError(
                f"{name} was trained on weights in few bits ({section}), and vLLM would put the adapter beside others. "
                f"Merge it with luthier export {name} --to vllm and serve that folder, or leave out --engine vllm."
            )


def _words(base: Base, parts: Parts) -> KnownWords:
    tokenizer = tokenizer_of(parts, base.offline)
    ends = ends_of(_generation(base), tokenizer)
    size = int(base.config.get_text_config(decoder=True).vocab_size)
    return KnownWords(tokenizer, template_of(parts, tokenizer), ends, size)


def _generation(base: Base) -> GenerationConfig:
    if (base.folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(base.folder, local_files_only=True)
    return GenerationConfig.from_model_config(base.config)

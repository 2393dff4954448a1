"""The models that a server offers, by name: a run or a model, and further adapters on the same base."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from luthier.config.load import load_config
from luthier.data.chat import ChatTemplate
from luthier.errors import ConfigError, ModelError
from luthier.models.inference import Loaded, Words, load_for_inference, load_tokenizer_folder, stop_ids
from luthier.models.peft_adapters.attach import attach_any
from luthier.models.shared_tree import another_tree
from luthier.rollout.decoder import max_positions


@dataclass(frozen=True)
class Defaults:
    """What a model's own generation settings say for requests that say nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None


@dataclass(frozen=True)
class Offered:
    """A model under the name that requests call it by."""

    name: str
    loaded: Words
    """What its texts are written and read with."""
    defaults: Defaults
    context: int | None
    """Most tokens of prompt and answer together."""
    base: str | None = None
    """The name of the model that it is an adapter on."""


@dataclass(frozen=True)
class OfferedModel(Offered):
    """A model of transformers under its name."""

    loaded: Loaded


def load_shelf(
    name: str,
    adapters: Mapping[str, Path],
    *,
    called: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> dict[str, OfferedModel]:
    """Loads a run or a model, under the name `called` (its folder's or its own if absent), and further adapters.

    Each adapter is a run's folder or one that PEFT reads. With adapters beside it, a run is its base with its own.

    Raises:
        ConfigError: two have the same name.
        ModelError: one of them cannot be loaded, or does not fit the base.
    """
    main = called or offered_name(name)
    if main in adapters:
        raise ConfigError(
            f"--adapter {main}=...: the model itself is called so; give the adapter another name"
        )
    own = adapter_folder(Path(name)) if adapters else None
    loaded = load_for_inference(name, adapter=own is None, device=device, dtype=dtype, offline=offline)
    offered = {main: _offered(main, loaded if own is None else _dressed(loaded, Path(name)))}
    for label, path in adapters.items():
        if adapter_folder(path) is None:
            raise ModelError(
                f"--adapter {label}={path}: there is no adapter_config.json in it or in its folder adapter/, so it is "
                "neither an adapter nor a run that trained one"
            )
        offered[label] = _offered(label, _dressed(loaded, path), main)
    return offered


def offered_name(name: str) -> str:
    """The name that a model is called by if no other is given: a folder's own, or the whole id."""
    path = Path(name)
    return path.resolve().name if path.exists() else name


def adapter_folder(path: Path) -> Path | None:
    """The adapter in a run's folder, or the folder itself if it is one; None: neither."""
    for folder in (path / "adapter", path):
        if (folder / "adapter_config.json").is_file():
            return folder
    return None


def _dressed(base: Loaded, path: Path) -> Loaded:
    """The base with the adapter in the folder, as a model of its own that shares the base's weights."""
    folder = adapter_folder(path)
    assert folder is not None
    model = another_tree(base.model)
    attach_any(model, folder)
    own = (folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer_folder(folder) if own else base.tokenizer
    arguments: dict[str, Any] = {}
    if (path / "config.yaml").is_file():
        arguments = load_config(path / "config.yaml").data.template_args
    template = ChatTemplate(tokenizer, template_args=arguments) if tokenizer.chat_template else None
    return replace(
        base, model=model, tokenizer=tokenizer, template=template, eos_token_ids=stop_ids(model, tokenizer)
    )


def _offered(name: str, loaded: Loaded, base: str | None = None) -> OfferedModel:
    usual = defaults_of(getattr(loaded.model, "generation_config", None))
    return OfferedModel(name, loaded, usual, max_positions(loaded.model), base)


def defaults_of(own: Any) -> Defaults:
    """Of a generation config: what it sets. Requests that say nothing are sampled, as OpenAI's are."""

    def said(key: str, otherwise: Any) -> Any:
        value = getattr(own, key, None)
        return otherwise if value is None else value

    top_k = said("top_k", None)
    return Defaults(
        float(said("temperature", 1.0)), float(said("top_p", 1.0)), top_k if top_k and top_k > 0 else None
    )


def other_bases(name: str, adapters: Sequence[Path]) -> list[str]:
    """A line for each adapter that says that it was trained on another base than that of the model called `name`."""
    lines, base = [], name
    if (Path(name) / "config.yaml").is_file():
        base = load_config(Path(name) / "config.yaml").model.name
    elif (own := adapter_folder(Path(name))) is not None:
        base = json.loads((own / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    for path in adapters:
        folder = adapter_folder(path)
        if folder is None:
            continue
        said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        other = said.get("base_model_name_or_path")
        if other and Path(other).name != Path(base).name:
            lines.append(f"the adapter in {path} says that it was trained on {other}, not on {base}")
    return lines


def bytes_of_token(model: PreTrainedModel) -> int:
    """Memory that the keys and values of one token take."""
    return model.dtype.itemsize * numbers_of_token(model.config)


def numbers_of_token(config: Any) -> int:
    """How many numbers the keys and values of one token are."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * size

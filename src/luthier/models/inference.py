"""A model that is ready to answer: a base model, or a run with what it trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from luthier.allocator import keep_pages
from luthier.config.load import load_config
from luthier.config.tree import Config
from luthier.data.chat import ChatTemplate
from luthier.errors import ModelError
from luthier.models.base import folder_of
from luthier.models.device import pick_device, pick_dtype
from luthier.models.head_files import read_head
from luthier.models.load import load_model, load_tokenizer
from luthier.models.new_tokens import make_room
from luthier.models.peft_adapters.attach import attach_any
from luthier.models.quantised.chosen import chosen
from luthier.models.quantised.load import Quantisation
from luthier.models.rounded.apply import Rounded, chosen_rounding, round_linears

UNFINISHED = "run {} has neither adapter/ nor model/: it has not finished. Continue it with --resume."


class Words(Protocol):
    """What a model's texts are written and read with, whatever computes it."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Turns texts into tokens and back."""
        ...

    @property
    def template(self) -> ChatTemplate | None:
        """None for a model without a chat template."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...

    @property
    def num_tokens(self) -> int:
        """Entries of the model's logits, and of its embeddings."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A model with all that is needed to talk to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate | None
    """None for a model without a chat template."""
    eos_token_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Entries of its logits, and of its embeddings."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])


@dataclass(frozen=True)
class KnownWords:
    """Words of a model that another program computes."""

    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate | None
    eos_token_ids: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True)
class Parts:
    """What a name stands for: a base model, and what was trained on it."""

    base: str
    """What `model:` takes in a config; of a run that tuned all weights, the folder with them."""
    revision: str | None
    adapter: Path | None
    """The adapter's folder."""
    config: Config | None
    """The run's."""

    @property
    def offline(self) -> bool:
        """Whether the run refused the network."""
        return self.config is not None and self.config.offline


def load_for_inference(
    name: str,
    *,
    adapter: bool = True,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    stored: bool = True,
    rounded: bool = True,
) -> Loaded:
    """The model called `name`: a run's folder, an adapter's folder, or anything `model:` takes in a config.

    Args:
        adapter: False loads a run's base model without what was trained.
        device, dtype: as `model.device` and `model.dtype` in a config.
        offline: refuse the network.
        stored: False loads a run's base model as it was before it was stored in few bits (`quant`).
        rounded: False leaves the weights of a run that was trained for few bits (`qat`) as they are.

    On a CPU, free memory stays with the process from then on, as in training (but for `memory.keep_pages: false`).
    """
    parts = find_parts(name, adapter=adapter)
    config, adapter_folder = parts.config, parts.adapter
    offline, keep, unpack = offline or parts.offline, True, None
    quantisation: Quantisation | None = None
    rounding: Rounded | None = None
    if config is not None:
        keep, unpack = config.memory.keep_pages, config.model.unpack
        quantisation = chosen(config) if stored else None
        rounding = chosen_rounding(config) if adapter and rounded else None
    _refuse_head(name, adapter_folder if adapter else None)
    where = pick_device(device)
    if keep and where.type == "cpu":
        keep_pages()
    folder = folder_of(parts.base, parts.revision, offline, unpack)
    model = load_model(folder, pick_dtype(dtype, where), where, quantisation)
    round_linears(model, rounding)
    if adapter_folder is not None and adapter:
        attach_any(model, adapter_folder)
    tokenizer = tokenizer_of(parts, offline)
    if adapter_folder is not None and not adapter:
        make_room(model, len(tokenizer))  # the tokenizer may have new tokens, whose rows are the adapter's
    return Loaded(model, tokenizer, template_of(parts, tokenizer), stop_ids(model, tokenizer))


def find_parts(name: str, *, adapter: bool = True) -> Parts:
    """What `name` stands for; without `adapter` the base model of a run that tuned all weights, too.

    Raises ModelError for a run that has not finished.
    """
    path = Path(name)
    if (path / "config.yaml").is_file():
        config = load_config(path / "config.yaml")
        base, revision = config.model.name, config.model.revision
        if (path / "adapter").is_dir():
            return Parts(base, revision, path / "adapter", config)
        if (path / "model").is_dir():
            return Parts(str(path / "model") if adapter else base, revision, None, config)
        raise ModelError(UNFINISHED.format(name))
    if (path / "adapter_config.json").is_file():
        saved = json.loads((path / "adapter_config.json").read_text())
        return Parts(saved["base_model_name_or_path"], saved.get("revision"), path, None)
    return Parts(name, None, None, None)


def template_of(parts: Parts, tokenizer: PreTrainedTokenizerFast) -> ChatTemplate | None:
    """The tokenizer's chat template with the arguments of the run; None: it has none."""
    arguments = parts.config.data.template_args if parts.config else {}
    return ChatTemplate(tokenizer, template_args=arguments) if tokenizer.chat_template else None


def _refuse_head(name: str, adapter_folder: Path | None) -> None:
    """Raises ModelError if the adapter is for a model that scores."""
    if adapter_folder is not None and (head := read_head(adapter_folder)):
        raise ModelError(
            f"{name} was trained as a model that scores ({head[0].kind}), so it cannot write an answer. Write it as "
            "a whole model with `luthier export` and load that with transformers."
        )


def tokenizer_of(parts: Parts, offline: bool) -> PreTrainedTokenizerFast:
    """The adapter's own tokenizer where it was saved with one, the base model's otherwise."""
    own = parts.adapter or Path(parts.base)
    if (own / "tokenizer_config.json").is_file():
        return load_tokenizer_folder(own)
    return load_tokenizer(parts.base, revision=parts.revision, offline=offline)


def load_tokenizer_folder(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder that need not hold a model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Tokens that end an answer: those of the generation config, and the tokenizer's end of sequence."""
    return ends_of(getattr(model, "generation_config", None), tokenizer)  # a model that scores has none


def ends_of(settings: Any, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The same by the generation config itself."""
    stop = settings.eos_token_id if settings else None
    ids = stop if isinstance(stop, list) else [stop]
    return tuple(sorted({i for i in [*ids, tokenizer.eos_token_id] if isinstance(i, int)}))

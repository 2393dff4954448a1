"""From a model's name to its weights and tokenizer: a folder, a hub id, a GGUF file or a demo name."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from luthier.errors import ModelError
from luthier.models import demo
from luthier.models.compat import bars_on_terminals_only
from luthier.models.gguf import convert_gguf
from luthier.models.new_tokens import add_tokens
from luthier.models.quantised.load import Quantisation, how_stored, load_quantised

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_NO_WRITERS = ("ForSequenceClassification", "ForTokenClassification")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def resolve_model(name: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The local folder with the model called `name`, in Hugging Face's layout. GGUF files are unpacked once.

    Raises:
        ModelError: nothing is found under that name, or it would have to be downloaded though `offline` is set.
    """
    if (file := gguf_file(name)) is not None:
        return convert_gguf(file)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(
                f"model {name}: the folder has no config.json, so it is not a model in Hugging Face's layout."
            )
        return path
    if path.exists():
        raise ModelError(
            f"model {name} is a file, but not a .gguf. Give a folder, a hub id, a .gguf file or a demo: name."
        )
    if HUB_ID.fullmatch(name) and not path.parent.is_dir():
        return _from_hub(name, revision, offline)
    raise ModelError(
        f"model {name}: there is no such folder or file{_neighbours(path)}, and it is not a hub id (owner/name)."
    )


def gguf_file(name: str) -> Path | None:
    """The GGUF file that `name` means; None if it means something else."""
    if name.startswith(demo.PREFIX):
        return demo.require(name)
    path = Path(name).expanduser()
    return path if path.is_file() and path.suffix == ".gguf" else None


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], 1)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def _from_hub(name: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, local_files_only=offline)
        )
    except LocalEntryNotFoundError as error:
        why = "offline is set" if offline else "the hub cannot be reached"
        raise ModelError(
            f"model {name} is not in the local hub cache and {why}. "
            "Give a local folder, or download it once on a machine with network."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {name} could not be fetched from the hub: {reason}") from error


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    new_tokens: Mapping[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """The model's tokenizer, with `new_tokens` (as `model.new_tokens` in a config) added to it.

    Raises:
        ModelError: it has none, or none that can say where in the text each token stands.
    """
    folder = resolve_model(name, revision=revision, offline=offline)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception for a broken file
        raise ModelError(f"model {name}: its tokenizer cannot be loaded ({_first_line(error)}).") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {name}: its tokenizer {type(tokenizer).__name__} cannot give the position of each token in the "
            "text, which the exact training mask needs. Convert it to a tokenizer.json."
        )
    add_tokens(tokenizer, new_tokens or {})
    return tokenizer


def load_model(
    folder: Path, dtype: torch.dtype, device: torch.device, quantisation: Quantisation | None = None
) -> PreTrainedModel:
    """The causal language model in `folder`, in evaluation mode; its linear layers stored in few bits if told how, or
    as they are stored in the folder.

    Raises:
        ModelError: transformers cannot build it, or it is stored in a format that is not known.
    """
    refuse_other_heads(folder)
    with reading_weights(folder):
        how = how_stored(folder, quantisation)
        if how is not None:
            model, found = load_quantised(AutoModelForCausalLM, folder, dtype, how)
            if lost := sorted(found["missing_keys"]):
                raise ModelError(
                    f"the model in {folder} lacks weights that {type(model).__name__} needs, such as {lost[0]}."
                )
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to(device).eval()  # pyright: ignore[reportArgumentType]


@contextmanager
def reading_weights(folder: Path) -> Iterator[None]:
    """Within it transformers builds the model in `folder`; raises ModelError if it cannot."""
    try:
        with bars_on_terminals_only():
            yield
    except ModelError:
        raise
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the model in {folder} cannot be loaded: {_first_line(error)}") from error


def refuse_other_heads(folder: Path) -> None:
    """Raises ModelError if the model in `folder` was saved without a head that writes: it would get a random one."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError):
        return  # transformers says what is wrong with it
    classes = [name for name in found if isinstance(name, str) and name.endswith(_NO_WRITERS)]
    if classes:
        raise ModelError(
            f"the model in {folder} is a {classes[0]}: it scores texts and cannot write any. Load it with "
            f"transformers ({classes[0]}.from_pretrained), or give a model that writes."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

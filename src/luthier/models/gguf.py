"""GGUF files as training weights: unpacked once into a bf16 safetensors folder in the cache."""

import hashlib
import json
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from luthier.errors import ModelError
from luthier.models import splitting
from luthier.models.compat import bars_on_terminals_only
from luthier.places import cache_folder

NEEDED = ("gguf", "accelerate")
LAYOUT = 2  # raise when what is written changes, so that older conversions are not used


def convert_gguf(file: Path) -> Path:
    """The Hugging Face folder with this file's weights (bf16), tokenizer and chat template; made once and kept.

    Raises:
        ModelError: the file is not a GGUF, or of an architecture that transformers cannot read.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(
                f"{file} is not a GGUF file: it does not begin with the letters GGUF. Is it complete?"
            )
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder("gguf", f"{digest[:32]}-{LAYOUT}")
    if (folder / "config.json").exists():
        return folder
    need_packages(f"reading {file.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        with bars_on_terminals_only():
            _unpack(file, partial)
        (partial / "luthier.json").write_text(json.dumps({"from": file.name, "sha256": digest}))
        if not folder.exists():  # another process may have been faster
            partial.rename(folder)
    except OSError as error:
        if not (folder / "config.json").exists():
            raise ModelError(
                f"could not write the unpacked {file.name} to {folder}: {error.strerror}"
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def need_packages(what: str) -> None:
    """Raises ModelError, which says how to install them, if the packages for `what` are not there."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ModelError(
            f"{what} needs the packages {' and '.join(missing)}, which are not installed. "
            "Install them with: pip install 'luthier[gguf]'"
        )


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that a GGUF describes.

    transformers reads its words and merges, but splits text by GPT-2's rule where it does not know the one that the
    file names. SmolLM2's is among those, and would take two line ends before a digit for other tokens than it learned.

    Raises:
        ValueError, KeyError, NotImplementedError: as transformers does.
    """
    import gguf

    with tempfile.TemporaryDirectory(prefix="luthier-gguf-") as alone:
        # transformers would follow a tokenizer_config.json that lies beside the file, and lose words of the file.
        (Path(alone) / file.name).symlink_to(file.resolve())
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name, local_files_only=True)
    tokenizer.name_or_path = str(file.parent)  # the folder is gone
    told = (gguf.GGUFReader(file).fields.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    kind, name = (None if field is None else field.contents() for field in told)
    splitter = splitting.named(str(name)) if kind == "gpt2" else None
    if splitter is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = splitter
    return tokenizer


def _unpack(file: Path, folder: Path) -> None:
    where = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = gguf_tokenizer(file)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **where
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"transformers cannot read {file.name}: {error}") from error
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")  # the weights written below are plain
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

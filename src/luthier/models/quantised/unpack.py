"""A model that is stored in few bits, written as a plain one: decoded weight by weight, never whole in memory."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from luthier.models.quantised.packed import (
    KEYS,
    PackedModel,
    packed_model,
    quantisation_on_disk,
    unpacked_tensors,
)
from luthier.models.quantised.shards import write_shards
from luthier.places import cache_folder
from luthier.runs.atomic import atomic_folder

WEIGHTS = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.gguf", "*.h5", "*.msgpack")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def unpacked(folder: Path) -> Path:
    """A folder in the cache with the same model as plain weights, made once; `folder` itself if it is plain.

    Raises:
        ModelError: the format is not known.
        RunError: the disk cannot take it.
    """
    if (packed := packed_model(folder)) is None:
        return folder
    out = cache_folder("unpacked", _fingerprint(folder))
    if not (out / "config.json").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(packed, folder, out)
    return out


@contextmanager
def plain_beside(folder: Path, out: Path) -> Iterator[Path]:
    """Within it there is a folder with the same model as plain weights, on the disk of `out`."""
    packed = packed_model(folder)
    assert packed is not None, "asked for stored models only"
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".unpacked-") as made:
        _write(packed, folder, Path(made) / "model")
        yield Path(made) / "model"


def _write(packed: PackedModel, folder: Path, out: Path) -> None:
    with atomic_folder(out, replace=False) as partial:
        config = _plain_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        kind = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.name.startswith(".") and not any(map(file.match, WEIGHTS)):
                shutil.copyfile(file, partial / file.name)
        write_shards(unpacked_tensors(packed, kind), partial)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Without what it says of few bits."""
    return {
        key: _plain_config(value) if key == "text_config" and isinstance(value, dict) else value
        for key, value in config.items()
        if key not in KEYS
    }


def _fingerprint(folder: Path) -> str:
    """Of where the model is and of its files' sizes and times."""
    found = hashlib.sha256(str(folder.resolve()).encode())
    for file in sorted(folder.iterdir()):
        about = file.stat()
        found.update(f"{file.name} {about.st_size} {about.st_mtime_ns}".encode())
    return found.hexdigest()[:32]


def stored_as(folder: Path) -> str:
    """The format in a few words, such as `gptq, 4 bits, groups of 128`; empty for a plain model."""
    if quantisation_on_disk(folder) is None:
        return ""
    packed = packed_model(folder)
    return packed.format.about if packed else ""

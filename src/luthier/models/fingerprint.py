"""A short mark of a model's weights on disk, so that an adapter is never merged into another base than its own.

The SHA-256 of every tensor's name, type, shape and the bytes at its beginning, middle and end. Reading it takes
milliseconds however large the model is. A model that was trained on, or is another one with the same shapes, differs in
all tensors; weights in which single numbers were changed on purpose are not what it is for.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from luthier.config.tree import Config
from luthier.errors import ModelError
from luthier.models.base import base_folder

FILE = "base.json"
SAMPLE = 512
"""Bytes that are read at each of three places of a tensor."""
LENGTH = 8
"""Bytes of the number that begins a safetensors file: how long its header is."""


def fingerprint(folder: Path) -> str | None:
    """Of the safetensors files in a folder; None where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    found = sorted(part for file in files for part in _parts(file))
    return hashlib.sha256("\n".join(found).encode()).hexdigest() if found else None


def _parts(file: Path) -> list[str]:
    """A line for each tensor. Which file holds it does not matter."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(LENGTH), "little")))
        start = stream.tell()
        found = []
        for name, told in header.items():
            if name == "__metadata__":
                continue
            begin, end = told["data_offsets"]
            digest = hashlib.sha256()
            for place in (begin, max(begin, (begin + end - SAMPLE) // 2), max(begin, end - SAMPLE)):
                stream.seek(start + place)
                digest.update(stream.read(min(SAMPLE, end - place)))
            found.append(f"{name} {told['dtype']} {told['shape']} {digest.hexdigest()}")
    return found


def mark_base(adapter_folder: Path, folder: Path, name: str) -> None:
    """Writes beside an adapter which weights it belongs to."""
    mark = fingerprint(folder)
    if mark is not None:
        content = {"model": name, "sha256_of_samples": mark}
        (adapter_folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def mark_base_of(config: Config, adapter_folder: Path) -> None:
    """The same for the base of a run. A run is not lost because its base cannot be read a second time."""
    with suppress(ModelError, OSError):
        mark_base(adapter_folder, base_folder(config), config.model.name)


def check_base(adapter_folder: Path, folder: Path) -> None:
    """Raises ModelError if the adapter says that it belongs to other weights. One without a mark is believed."""
    path = adapter_folder / FILE
    if not path.is_file():
        return
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        expected, name = told["sha256_of_samples"], told["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} cannot be read: {error!r}. Remove it to merge without this check."
        ) from error
    if fingerprint(folder) != expected:
        raise ModelError(
            f"{folder} holds other weights than those that {adapter_folder} was trained on ({name}): was the model "
            "changed, or is it another revision? Merging would give a model that nobody trained. Give the base of the "
            f"training, or remove {path} to merge all the same."
        )

"""What a server is to offer, and what an engine makes of it: models by name, and the engine that answers for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.errors import ConfigError
from luthier.export.gguf.llama import NEEDED, installed
from luthier.serve.engine import Engine
from luthier.serve.shelf import Offered

Kind = Literal["native", "llama", "vllm"]
"""The engines; each is the module of this name beside this one, with a function `opened`."""

MEMORY_SHARE = 0.25
"""Of the free memory, that the cache may take where nothing else is said."""


@dataclass(frozen=True)
class Asked:
    """The models that are asked for, and the room for their answers."""

    name: str
    """A run, or what `model:` takes in a config."""
    adapters: Mapping[str, Path]
    called: str | None
    """What requests call the model; None: as its folder or itself is called."""
    offline: bool
    answers: int
    """Most answers at a time."""
    cache_tokens: int | None
    """Most tokens at a time; None: as many as there is memory for."""
    queue: int
    """Most requests that wait."""
    share_prompts: bool = True
    """Whether what was read stays known to prompts that begin alike; of the native engine."""


@dataclass(frozen=True)
class Opened:
    """Models and their engine, which has not been started."""

    shelf: Mapping[str, Offered]
    engine: Engine
    tokens: int
    """Most tokens at a time."""
    ways: Mapping[str, str]
    """For each model one sentence for people: how it is computed. Filled once the engine has started."""


def is_file(name: str) -> bool:
    """Whether this is a GGUF file."""
    return name.lower().endswith(".gguf") and Path(name).is_file()


def kind_for(asked: Asked) -> tuple[Kind, str]:
    """The engine where nothing is said, and why it is not the one that the file was made for; empty: it is.

    A GGUF is served by llama.cpp, which runs it as it is, where it is there. Adapters in folders are for transformers.
    """
    if not is_file(asked.name):
        return "native", ""
    if any(path.is_dir() for path in asked.adapters.values()):
        return (
            "native",
            f"{asked.name} is decoded to bf16, as adapters in folders cannot stand beside a GGUF in llama.cpp",
        )
    if not installed():
        return (
            "native",
            f"{asked.name} is decoded to bf16; llama.cpp would run it as it is, but that takes {NEEDED}",
        )
    return "llama", ""


def gguf_of(name: str) -> Path:
    """The file itself, or the one that was exported from a run and passed its proof.

    Raises ConfigError if there is none, or more than one.
    """
    path = Path(name)
    if is_file(name):
        return path
    every = sorted(path.glob("gguf/*.gguf")) or sorted(path.glob("*.gguf"))
    refused = [one.name for one in every if ".unverified" in one.name]
    found = [one for one in every if one.name not in refused and _is_model(one)]
    if not found:
        beside = f" that is the model that was trained ({refused[0]} is not)" if refused else ""
        raise ConfigError(
            f"--engine llama serves GGUF files, and {name} has none{beside}; write one with "
            f"luthier export {name} --to gguf:q8_0, or leave --engine out"
        )
    if len(found) > 1:
        raise ConfigError(
            f"{name} has {len(found)} GGUF files ({', '.join(one.name for one in found)}); give the path of one of them"
        )
    return found[0]


def _is_model(file: Path) -> bool:
    """Whether it is not the adapter of a model. Of what cannot be read llama.cpp says why."""
    from gguf import GGUFReader

    try:
        field = GGUFReader(file).fields.get("general.type")
    except (ValueError, IndexError, OSError):
        return True
    return field is None or field.contents() != "adapter"

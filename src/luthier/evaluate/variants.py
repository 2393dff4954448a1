"""The forms of one run that can be measured side by side, found on disk before any of them is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import ConfigError, ModelError
from luthier.evaluate.journal import digest
from luthier.export.gguf.llama import installed

LLAMA_CPP = "llama.cpp"
"""The engine of GGUF files where llama-cpp-python is installed."""
DECODED = "transformers, decoded"
"""Theirs where it is not."""
NAMES = ("base", "adapter", "trained", "merged")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


@dataclass(frozen=True)
class Variant:
    """One form of a model."""

    label: str
    """What it is called in the table."""
    name: str
    """What is loaded: as `model:` in a config, or a run's folder."""
    trained: bool = True
    """False: a run's model as it was before training."""
    engine: str = "transformers"
    """What computes it."""

    def files(self, offline: bool = False) -> list[Path]:
        """The files with its weights.

        Raises:
            ModelError: there is no such model.
        """
        from luthier.config.load import load_config
        from luthier.models.load import gguf_file, resolve_model

        path = Path(self.name)
        places = [path] if path.exists() else []
        if (path / "config.yaml").is_file():
            config = load_config(path / "config.yaml")
            whole = path / "model"
            places = [path / "adapter"] if self.trained and not whole.is_dir() else []
            if self.trained and whole.is_dir():
                places = [whole]
            else:
                offline = offline or config.offline
                base = gguf_file(config.model.name)
                revision = config.model.revision
                places += [base or resolve_model(config.model.name, revision=revision, offline=offline)]
        elif (path / "adapter_config.json").is_file():
            import json

            saved = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
            base = saved["base_model_name_or_path"]
            places = [path, resolve_model(base, revision=saved.get("revision"), offline=offline)]
        elif not places:
            places = [resolve_model(self.name, offline=offline)]
        return [file for place in places for file in _weights(place)]

    def size(self, offline: bool = False) -> int:
        """Bytes of these files."""
        return sum(file.stat().st_size for file in self.files(offline))

    def key(self, offline: bool = False) -> str:
        """Changes when its files do, or the program that computes them."""
        stats = [(file.name, file.stat()) for file in self.files(offline)]
        engine = [self.engine] if self.engine == LLAMA_CPP else []
        return digest(self.trained, *engine, [(name, one.st_size, one.st_mtime_ns) for name, one in stats])


def variants_of(name: str, asked: Sequence[str]) -> list[Variant]:
    """The variants that are asked for, or those that there are if none is.

    Args:
        name: a run's folder, or anything `model:` takes: then that is the first variant.
        asked: `base`, `adapter` or `trained`, `merged`, paths of GGUF files and folders, names of models.

    Raises:
        ConfigError: one of them does not exist, or was named twice.
    """
    run = Path(name)
    if not (run / "config.yaml").is_file():
        wrong = [one for one in asked if one in NAMES]
        if wrong:
            raise ConfigError(f"{wrong[0]} is a form of a run, and {name} is not the folder of a run")
        found = [_other(name), *map(_other, asked)]
    else:
        found = [_of_run(run, one) for one in asked or _present(run)]
    labels = [one.label for one in found]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ConfigError(f"{', '.join(sorted(twice))} is to be compared with itself; name each variant once")
    return found


def alone(name: str, *, trained: bool) -> Variant:
    """A run as it is, or as it was before training; or a model."""
    if not (Path(name) / "config.yaml").is_file():
        return _other(name)
    return _of_run(Path(name), _trained(Path(name)) if trained else "base")


def _trained(run: Path) -> str:
    return "adapter" if (run / "adapter").is_dir() else "trained"


def _present(run: Path) -> list[str]:
    files = sorted(str(file) for file in (run / "gguf").glob("*.gguf"))
    return ["base", _trained(run), *(["merged"] if (run / "merged").is_dir() else []), *files]


def _of_run(run: Path, asked: str) -> Variant:
    if asked == "base":
        return Variant("base", str(run), trained=False)
    if asked == "adapter" and not (run / "adapter").is_dir():
        raise ConfigError(f"{run} has no adapter, because all weights were tuned; its model is `trained`")
    if asked in ("adapter", "trained"):
        return Variant(asked, str(run))
    if asked == "merged":
        if not (run / "merged").is_dir():
            raise ConfigError(f"{run} has no merged model; write it first: luthier export {run} --to merged")
        return Variant("merged", str(run / "merged"))
    return _other(asked)


def _other(name: str) -> Variant:
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"{name} is no file; write one with: luthier export RUN --to gguf:q8_0")
        return Variant(path.stem, name, engine=LLAMA_CPP if installed() else DECODED)
    return Variant(path.name if path.exists() else name, name)


def _weights(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    found = sorted(file for file in place.iterdir() if file.suffix in _WEIGHTS and file.is_file())
    if not found:
        raise ModelError(f"{place} has no weights")
    safe = [file for file in found if file.suffix == ".safetensors"]
    return safe or found

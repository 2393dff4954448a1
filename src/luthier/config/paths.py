"""Whether the files that a configuration names are there, as far as that can be told without loading any."""

from difflib import get_close_matches
from pathlib import Path

from luthier.config.places import Fault, KeyPath, Places, dotted, in_order
from luthier.config.plugins import is_own_file
from luthier.config.tree import Config

DATA_SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")


def path_faults(config: Config, places: Places) -> list[str]:
    """A message for every path that leads nowhere. Relative ones start at the current folder."""
    checks = [*_data_checks(config), *_other_checks(config)]
    return in_order(Fault(places.find(path), f"{dotted(path)}: {text}") for path, text in checks if text)


def looks_like_path(name: str) -> bool:
    """Whether a model's name can only be a local path; a hub id has at most one slash and no leading dot."""
    return (
        name.startswith(("/", "./", "../", "~", ".\\", "..\\"))
        or name.endswith(".gguf")
        or name.count("/") > 1
    )


def _data_checks(config: Config) -> list[tuple[KeyPath, str]]:
    named = [("path", config.data.path or []), ("eval_path", config.data.eval_path or [])]
    checks = []
    for key, paths in named:
        for index, path in enumerate(paths):
            place: KeyPath = ("data", key, index) if len(paths) > 1 else ("data", key)
            checks.append((place, _data_fault(Path(path))))
    return checks


def _other_checks(config: Config) -> list[tuple[KeyPath, str]]:
    checks: list[tuple[KeyPath, str]] = []
    if config.data.template is not None:
        checks.append((("data", "template"), _file_fault(Path(config.data.template))))
    if is_own_file(config.method.name):
        checks.append((("method", "name"), _file_fault(Path(config.method.name))))
    if looks_like_path(config.model.name):
        checks.append((("model", "name"), _model_fault(Path(config.model.name))))
    return checks


def _data_fault(path: Path) -> str:
    if path.is_dir():
        if any(entry.name.lower().endswith(DATA_SUFFIXES) for entry in path.iterdir()):
            return ""
        return f"{path} is a folder without {', '.join(DATA_SUFFIXES)} files"
    if path.is_file() and not path.name.lower().endswith(DATA_SUFFIXES):
        return f"{path} is none of {', '.join(DATA_SUFFIXES)}; convert it"
    return _file_fault(path)


def _model_fault(path: Path) -> str:
    if path.is_dir():
        return (
            "" if (path / "config.json").is_file() else f"{path} is a folder without config.json, so no model"
        )
    return _file_fault(path)


def _file_fault(path: Path) -> str:
    try:
        if path.is_file():
            return ""
        if path.is_dir():
            return f"{path} is a folder; give a file"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"
    if str(path).startswith("~"):
        return f"{path} does not exist; write ~ out, it is not expanded"
    return f"{path} does not exist{_similar(path)}"


def _similar(path: Path) -> str:
    try:
        near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    except (OSError, ValueError):
        return f"; nor does its folder {path.parent}"
    return f"; did you mean {path.parent / near[0]}?" if near else f" (looked from {Path.cwd()})"

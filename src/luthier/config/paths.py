"""Whether the files that a configuration names are there, as far as that can be told without loading any."""

import glob
import os
import re
from difflib import get_close_matches
from pathlib import Path

from luthier.config.places import Fault, KeyPath, Places, dotted, in_order
from luthier.config.plugins import is_own_file
from luthier.config.tree import Config

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
"""How the names of files with rows end."""
PACKED = (".gz", ".zst")
"""What may follow where the file is text."""


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


def absolute_data(given: str) -> str:
    """What `data` names, so that it means the same from every folder: local files, folders and patterns as absolute
    paths, everything else (the hub, URLs, `-`) as it is."""
    registry, sharp, names = given.partition("#")
    path = Path(given).expanduser()
    if path.exists():
        return str(path.absolute())
    if sharp and Path(registry).expanduser().exists():
        return str(Path(registry).expanduser().absolute()) + sharp + names
    if glob.has_magic(given) and not _is_elsewhere(given):
        return str(path.absolute())
    return given


def is_data_name(name: str) -> bool:
    """Whether a file's name ends like that of a file with rows."""
    name = name.lower()
    packed = next((ending for ending in PACKED if name.endswith(ending)), "")
    suffixes = DATA_SUFFIXES[:-2] if packed else DATA_SUFFIXES
    return name.removesuffix(packed).endswith(suffixes)


def _data_checks(config: Config) -> list[tuple[KeyPath, str]]:
    named = [("path", config.data.path or []), ("eval_path", config.data.eval_path or [])]
    checks: list[tuple[KeyPath, str]] = []
    for key, paths in named:
        for index, path in enumerate(paths):
            place: KeyPath = ("data", key, index) if len(paths) > 1 else ("data", key)
            checks.append((place, _data_fault(path)))
    for index, one in enumerate(config.data.sets):
        checks.append((("data", "sets", index, "path"), _data_fault(one.path)))
    return checks


def _other_checks(config: Config) -> list[tuple[KeyPath, str]]:
    checks: list[tuple[KeyPath, str]] = []
    if config.data.template is not None:
        checks.append((("data", "template"), _file_fault(Path(config.data.template))))
    for section, name in (("method", config.method.name), ("optim", config.optim.name)):
        if is_own_file(name):
            checks.append(((section, "name"), _file_fault(Path(name))))
    if looks_like_path(config.model.name):
        checks.append((("model", "name"), _model_fault(Path(config.model.name))))
    if config.teacher is not None and looks_like_path(config.teacher.name):
        checks.append((("teacher", "name"), _model_fault(Path(config.teacher.name))))
    for key, one in config.lora.each() if config.lora is not None else []:
        if one.start is not None and not Path(one.start).is_dir():
            checks.append(
                ((*key.split("."), "start"), f"{one.start} is no folder{_similar(Path(one.start))}")
            )
    if config.reference.name is not None and looks_like_path(config.reference.name):
        checks.append((("reference", "name"), _model_fault(Path(config.reference.name))))
    return checks


def _data_fault(given: str) -> str:
    """Why data cannot be there; empty also where only looking at the hub or behind a URL could tell."""
    if _is_elsewhere(given):
        return ""
    path = Path(given).expanduser()
    try:
        if path.is_dir():
            return _folder_fault(path)
        if path.is_fifo() or (path.is_file() and (is_data_name(path.name) or _is_registry(path.name))):
            return ""
        if path.is_file():
            return f"{path} is none of {', '.join(DATA_SUFFIXES)}; convert it"
    except (OSError, ValueError) as error:
        return f"{path} cannot be read: {error}"
    registry, _, names = given.partition("#")
    if names:
        return _file_fault(Path(registry).expanduser())
    if glob.has_magic(given):
        found = next(glob.iglob(str(path), recursive=True), None)
        return "" if found is not None else f"the pattern {given} matches nothing"
    if _may_be_on_the_hub(given):
        return ""
    return _file_fault(path)


def _is_elsewhere(given: str) -> bool:
    """Whether a name can be no local path: a stream, a hub set or a URL."""
    return given == "-" or re.match(r"hf:|[a-z][a-z0-9+.-]*://", given) is not None


def _folder_fault(path: Path) -> str:
    for _, _, names in os.walk(path, followlinks=False):
        if any(is_data_name(name) for name in names):
            return ""
    # Behind links there may be more; reading follows them.
    if any(entry.is_symlink() for entry in path.iterdir()):
        return ""
    return f"{path} is a folder without {', '.join(DATA_SUFFIXES)} files"


def _is_registry(name: str) -> bool:
    """Whether a file lists data sets, as Axolotl's configs do; those of LLaMA-Factory end like a data file."""
    return name.lower().endswith((".yaml", ".yml"))


def _may_be_on_the_hub(given: str) -> bool:
    """Whether a name could be `org/name`: no file's name, and no folder `org` is here."""
    hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?", given)
    return hub_id is not None and not is_data_name(given) and not Path(given).parent.is_dir()


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

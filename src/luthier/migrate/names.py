"""What names say: of models that hold quantised weights or images, of folders for results."""

import re
from pathlib import PurePosixPath

from luthier.migrate.draft import Draft

_STORED = re.compile(
    r"(?<![a-z0-9])(awq|gptq|aqlm|hqq|eetq|exl2|nvfp4|mxfp4|fp8|fp4|int4|int8|bnb|4bit|8bit|w4a16|2bit(-1x16)?)"
    r"(?![a-z0-9])",
    re.IGNORECASE,
)
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def put_model(draft: Draft, key: str, name: str) -> None:
    """Sets `model.name`; refuses models whose weights are stored in a form that is not read."""
    stored = _STORED.search(name.rpartition("/")[2])
    if stored:
        draft.block(
            key,
            f"{name} holds weights quantised as {stored[1].upper()}; Luthier trains on plain weights, so name "
            "the model that it was made from",
        )
    draft.map(key, "model.name", name)


def put_output(draft: Draft, key: str, folder: str) -> None:
    """Sets `run.root` and `run.name` from the folder that results go to."""
    path = PurePosixPath(folder.replace("\\", "/"))
    if path.name in ("", ".", ".."):
        draft.needless(key, f"{folder} is the current folder; runs go to runs/")
        return
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.name).lstrip("._-") or "run"
    root = str(path.parent)
    if root != ".":
        draft.put("run.root", root)
    same = _FOLDER.fullmatch(path.name) is not None
    note = "" if same else f"{path.name} is no name for a run's folder, so it is written {name}"
    draft.map(key, "run.name", name, note)

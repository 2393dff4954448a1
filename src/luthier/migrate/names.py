"""What names say: of models that hold quantised weights or images, of folders for results."""

import re
from pathlib import PurePosixPath

from luthier.migrate.draft import Draft

_UNREAD = re.compile(r"(?<![a-z0-9])(aqlm|hqq|eetq|exl[23]|nvfp4|mlx|linearized)(?![a-z0-9])", re.IGNORECASE)
"""Forms of stored weights that models/quantised/formats/ has no file for."""
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def put_model(draft: Draft, key: str, name: str) -> None:
    """Sets `model.name`; refuses models whose weights are stored in a form that is not read."""
    stored = _UNREAD.search(name)
    if stored:
        draft.block(
            key,
            f"{name} holds weights stored as {stored[1].upper()}, which Luthier does not read (it reads GPTQ, AWQ, "
            "compressed-tensors, FP8, MXFP4, bitsandbytes and GGUF); name the model that it was made from",
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

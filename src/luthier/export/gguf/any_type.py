"""A model folder as a GGUF of any type: by our own writer, or by llama.cpp's quantiser."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.export.gguf.importance import importance
from luthier.export.gguf.quantise import NAMES, need_llama_cpp, quantise
from luthier.export.gguf.types import TYPES
from luthier.export.gguf.write import Progress, write_gguf

ALL = (*TYPES, *NAMES)
"""Types that can be written."""


def write_any(
    folder: Path,
    out: Path,
    kind: str,
    rows: Callable[[Path], Sequence[Sequence[int]]],
    *,
    name: str,
    exact: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Writes the model in `folder`. For a type of llama.cpp's quantiser a file in 32 bits stands beside it meanwhile.
    Returns what people should know of the file, a sentence each.

    Args:
        kind: one of `ALL`.
        rows: gives tokens of rows of data, which say which weights matter; without any all matter alike.
        name, exact, progress: as `write_gguf` takes them; the quantiser chooses by itself what it keeps in more bits.

    Errors: those of `write_gguf` and `quantise`.
    """
    if kind in TYPES:
        write_gguf(folder, out, kind, name=name, exact=exact, progress=progress)
        return ()
    need_llama_cpp(kind)
    known = rows(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".in-32-bits-") as scratch:
        wide = Path(scratch) / "model.gguf"
        write_gguf(folder, wide, "f32", name=name, progress=progress)
        return quantise(wide, out, kind, importance(folder, known) if known else None)

"""Types that llama.cpp's own quantiser writes: K-quants and IQ, by way of a file in 32 bits.

It chooses by itself which tensors get more bits, and takes another type where the rows of a matrix do not divide into
its blocks of 256. With an importance matrix (`importance.py`) it rounds where it matters least.
"""

import ctypes
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.cores import usable_cores
from luthier.errors import ModelError, RunError
from luthier.export.gguf.llama import NEEDED, heard, installed, library
from luthier.runs.atomic import atomic_file, check_room

NAMES = (
    *("q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"),
    *("iq4_nl", "iq4_xs", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs"),
)
"""By the name that follows `gguf:`."""
NEED_IMPORTANCE = frozenset({"q2_k_s", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq3_xs"})
"""Types that llama.cpp does not write without an importance matrix."""
BITS = {"2": 3.5, "3": 4.5, "4": 5.2, "5": 6.0, "6": 6.9}
"""About as many bits a weight at most, by the figure in the name; matrices of other widths take more."""


def need_llama_cpp(kind: str) -> None:
    """Raises ModelError, which names the extra, if llama-cpp-python is not there."""
    if not installed():
        raise ModelError(f"gguf:{kind} is written by llama.cpp's own quantiser, through {NEEDED}")


def quantise(
    file: Path, out: Path, kind: str, importance: Mapping[str, np.ndarray] | None = None
) -> tuple[str, ...]:
    """Writes a GGUF file in 16 or 32 bits in one of `NAMES`. Returns what people should know of it, a sentence each.

    Args:
        importance: for names of tensors the mean squares of what their columns are multiplied with.

    Raises:
        ModelError: llama.cpp is not there, or cannot write this type, which may need an importance matrix.
        RunError: the disk cannot take it. Nothing is left at `out` then.
    """
    need_llama_cpp(kind)
    if kind in NEED_IMPORTANCE and not importance:
        raise ModelError(
            f"gguf:{kind} needs to know which weights matter, and none of the run's rows can be read to find out. "
            "Bring the rows back, or write gguf:q2_k or more bits."
        )
    llama_cpp = library()
    check_room(out, int(file.stat().st_size * BITS[kind.lstrip("iq")[0]] / 32))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    params.nthread = usable_cores()
    kept = _entries(importance or {})
    if importance:
        params.imatrix = kept[0]
    with atomic_file(out) as partial, heard() as told:
        status = llama_cpp.llama_model_quantize(bytes(file), bytes(partial), ctypes.byref(params))
        if status:
            said = " ".join(line.strip() for line in told[-3:]) or "nothing"
            raise RunError(
                f"llama.cpp could not write gguf:{kind}. Is there room on the disk? The last that it said: {said}"
            )
    del kept
    return _other_types(kind, told)


def _other_types(kind: str, told: Sequence[str]) -> tuple[str, ...]:
    """From llama.cpp's warnings, one a matrix, how many matrices have another type than they were to have."""
    others = Counter(found[1] for line in told if (found := re.search(r"falling back to\s+(\w+)", line)))
    if not others:
        return ()
    types = ", ".join(f"{number} {name}" for name, number in others.most_common())
    return (
        f"The rows of {others.total()} matrices do not divide into the blocks of 256 that gguf:{kind} needs, so "
        f"llama.cpp gave them types with blocks of 32 or none: {types}.",
    )


def _entries(importance: Mapping[str, np.ndarray]) -> tuple[Any, list[Any]]:
    """The C array of names and vectors, which an empty entry ends, and what must live as long as it does."""
    llama_cpp = library()
    table = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    alive: list[Any] = []
    for entry, (name, values) in zip(table, importance.items(), strict=False):
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        alive += [flat, name.encode()]
        entry.name, entry.size = alive[-1], flat.size
        entry.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return table, alive

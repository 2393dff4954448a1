"""Whether llama.cpp is there. It comes as llama-cpp-python, an extra, as that is compiled when it is installed."""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

PACKAGE = "llama_cpp"
NEEDED = "llama-cpp-python, which is not installed. Install it with: pip install 'luthier[llama]'"
WARNING, ERROR, GOING_ON = 3, 4, 5
"""Levels of `ggml_log_level` in ggml.h; the last is more of the line before."""


def installed() -> bool:
    """Whether llama-cpp-python is there."""
    return find_spec(PACKAGE) is not None


def library(part: str = "") -> Any:
    """The package, or a module of it: without types, as it need not be there. It writes no more than errors."""
    found = import_module(f"{PACKAGE}{part}")
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    return found


@contextmanager
def heard() -> Iterator[list[str]]:
    """The warnings and errors that llama.cpp tells meanwhile, in order, instead of on standard error.

    llama.cpp has one place for what it tells, which is given back. llama-cpp-python's own shows every warning, as it
    takes ggml's levels for those of another version.
    """
    llama_cpp = library()
    told: list[str] = []
    kept = [False]

    def keep(level: int, text: bytes, _: Any) -> None:
        if level != GOING_ON:
            kept[0] = level in (WARNING, ERROR)
        if kept[0]:
            words = text.decode("utf-8", "replace")
            if level == GOING_ON and told:
                told[-1] += words
            else:
                told.append(words)

    listening = llama_cpp.llama_log_callback(keep)  # lives as long as llama.cpp may call it
    before, given = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(given))
    llama_cpp.llama_log_set(listening, None)
    try:
        yield told
    finally:
        llama_cpp.llama_log_set(before, given)

"""Whether llama.cpp is there. It comes as llama-cpp-python, an extra, as that is compiled when it is installed."""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any

PACKAGE = "llama_cpp"
NEEDED = "llama-cpp-python, which is not installed. Install it with: pip install 'luthier[llama]'"


def installed() -> bool:
    """Whether llama-cpp-python is there."""
    return find_spec(PACKAGE) is not None


def library(part: str = "") -> Any:
    """The package, or a module of it: without types, as it need not be there. It writes no more than errors."""
    found = import_module(f"{PACKAGE}{part}")
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    return found

"""The two ways of an op on the CPU, for tests that hold both to the same laws."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from luthier.kernels import native

PATHS = ("cpp", "torch")


@contextmanager
def on_path(path: str) -> Iterator[None]:
    """Within this block ops take their C++ path (the test is skipped where there is none) or that in plain torch."""
    if path == "cpp":
        if native.library() is None:
            pytest.skip(native.reason())
        yield
    else:
        with native.disabled():
            yield

"""The allocator keeps pages when told, and nothing happens without being told."""

import platform
import subprocess
import sys

import pytest

from luthier import allocator

PROGRAM = """
import resource, sys
import numpy
import luthier, luthier.allocator
if sys.argv[1] == "keep":
    assert luthier.allocator.keep_pages()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        numpy.ones(8 << 20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults(how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


def test_large_blocks_are_taken_again_without_page_faults() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc can be told")
    kept, given_back = faults("keep"), faults("leave")
    assert given_back > 20 * 16  # at least one fault for each 4 MiB, however large the pages are
    assert kept < given_back / 20


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_pages() is False

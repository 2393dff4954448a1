"""Tells the C library's allocator to keep the memory that it once got. No torch.

glibc gives every large block back to the kernel when it is freed, and asks for it again at the next call. The
kernel hands out each page anew: one page fault and 4 KiB of zeros to write, for activations that live a few
milliseconds. A training step that frees and takes gigabytes spends a good part of its time there.
"""

import ctypes
import platform

# numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
NEVER = -1  # of M_TRIM_THRESHOLD: the top of the heap stays with the process
LARGEST_FROM_HEAP = (
    1 << 30
)  # blocks up to 1 GiB come from the heap, which is kept, and not from mmap, which is not
OLDER_LARGEST = 1 << 25  # glibc before 2.35 refuses more than 32 MiB
PAD = 64 << 20  # the heap grows by at least this much at a time


def keep_pages() -> bool:
    """Makes free memory stay with the process, ready for reuse; whether the allocator took the setting.

    Call it once, when all that lasts is there and before the first step. The setting holds for the whole process and
    cannot be taken back: its resident memory stays at its peak until it ends (`memory.keep_pages: false` in a config
    leaves it out). Only glibc knows these settings. Under musl, on macOS and on Windows nothing is done and False comes
    back; where another allocator is preloaded (tcmalloc, jemalloc) the call reaches a glibc that nobody asks, which is
    harmless.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt  # of the C library that this process already uses
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    large = mallopt(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP) or mallopt(M_MMAP_THRESHOLD, OLDER_LARGEST)
    return bool(large and mallopt(M_TRIM_THRESHOLD, NEVER) and mallopt(M_TOP_PAD, PAD))


def give_back() -> bool:
    """Hands all free memory back to the kernel, once; whether the C library can (glibc can).

    For after a phase that took and freed large blocks with small lasting ones in between: the holes that it leaves are
    too small for the next large block, so the heap grows while most of it is free.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim = ctypes.CDLL(None).malloc_trim
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return bool(trim(0))

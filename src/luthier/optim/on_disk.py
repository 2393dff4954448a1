"""States of an optimizer in files that are mapped into memory, for a CPU that has more disk than RAM.

The kernel brings a page in when an update reads it and may write it back and drop it when memory is needed, so states
count as page cache, not as memory of the process. The numbers are the same to the bit: it is the same arithmetic on the
same tensors.

A file has no name from the moment that it is mapped, so nothing is left behind however the process ends.
"""

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from luthier.errors import RunError

LEAST = 1 << 20
"""Bytes from which on a state is worth a file."""


class OnDisk:
    """Puts tensors into files of a folder.

    Args:
        folder: on the disk; made if absent.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.num_bytes = 0
        """What lies in files."""

    def place(self, value: Tensor) -> Tensor:
        """The same numbers in a file. What is small stays where it is.

        Raises:
            RunError: the disk has no room.
        """
        if value.device.type != "cpu" or value.nbytes < max(1, LEAST):
            return value
        storage = torch.UntypedStorage.from_file(name := self._file(value.nbytes), True, value.nbytes)
        os.unlink(name)
        placed = torch.empty(0, dtype=value.dtype).set_(storage, 0, value.shape)  # pyright: ignore[reportCallIssue]
        self.num_bytes += value.nbytes
        return placed.copy_(value)

    def _file(self, size: int) -> str:
        """A file of so many bytes that are really there: a page without room on the disk would end the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".states-", dir=self.folder)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            os.unlink(name)
            raise RunError(
                f"memory.optimizer is disk, but {self.folder} has no room for {size / 2**20:,.0f} MiB more of the "
                f"optimizer's states ({error.strerror}). Set run.root to a larger disk, or optim.name: adamw_8bit"
            ) from error
        finally:
            os.close(descriptor)
        return name

"""Parts of a long pass that is not finished, one file each, so that an interrupted one goes on where it was."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.errors import RunError
from luthier.runs.atomic import atomic_write_bytes

Values = NDArray[np.float32]


class Parts:
    """What the disk does not take is held in memory.

    Args:
        folder: where they are.
        sizes: how many predictions each part has.
        width: the shape of what is known of one prediction.
        title: whose numbers they are, for messages.
    """

    def __init__(
        self,
        folder: Path,
        sizes: Sequence[int],
        width: tuple[int, ...],
        title: str,
        say: Callable[[str], None],
    ):
        self.folder, self.sizes, self.width, self.title, self.say = folder, sizes, width, title, say
        self.held: dict[int, Values] = {}
        self.broken = False

    def present(self) -> frozenset[int]:
        """The parts that are there whole."""
        return frozenset(n for n, size in enumerate(self.sizes) if self._size_on_disk(n) == self._bytes(size))

    def __getitem__(self, number: int) -> Values:
        """One part."""
        if number in self.held:
            return self.held[number]
        content = (self.folder / f"{number:06}").read_bytes()
        return np.frombuffer(content, "<f4").reshape(-1, *self.width)

    def write(self, number: int, values: Values) -> None:
        """Keeps one part."""
        if not self.broken:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                atomic_write_bytes(self.folder / f"{number:06}", values.astype("<f4").tobytes())
                return
            except (RunError, OSError) as fault:
                self.broken = True
                self.say(f"what {self.title} says cannot be kept while it is made ({fault})")
        self.held[number] = values

    def remove(self) -> None:
        """Removes them, once all are in one file."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _bytes(self, size: int) -> int:
        return 4 * size * math.prod(self.width)

    def _size_on_disk(self, number: int) -> int:
        try:
            return (self.folder / f"{number:06}").stat().st_size
        except OSError:
            return -1

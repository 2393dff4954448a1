"""The GGUF of an adapter in llama.cpp, beside a file of its base model that is made for it and removed again."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.export.gguf.write import write_gguf
from luthier.export.verify.engines.llama_cpp import InLlamaCpp


class BesideBase(InLlamaCpp):
    """What `llama-cli -m BASE.gguf --lora FILE` computes. The base's file has 32 bits, so that what differs is the
    adapter's doing; it takes 4 bytes a weight of the disk beside `file` for a while.

    Args:
        file: the adapter's GGUF.
        base: the folder of the base model.
        longest: tokens of the longest text that is asked for, the answer included.
    """

    def __init__(self, file: Path, base: Path, longest: int, config: Any):
        self._scratch = TemporaryDirectory(dir=file.parent, prefix=".base-")
        try:
            whole = Path(self._scratch.name) / "base.gguf"
            write_gguf(base, whole, "f32")
            super().__init__(whole, longest, config, adapter=file)
        except BaseException:
            self._scratch.cleanup()
            raise
        self.name += ", beside its base model in f32"

    def __exit__(self, *what: object) -> None:
        super().__exit__(*what)
        self._scratch.cleanup()

"""A folder in the format of compressed-tensors, in transformers with the package of that name where it is installed,
which also rounds activations where the format says so; else decoded by Luthier's own reader."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from luthier.export.verify.engines._torch import TorchModel
from luthier.models.inference import load_tokenizer_folder
from luthier.models.load import load_model, reading_weights


def installed() -> bool:
    """Whether the package is there."""
    return find_spec("compressed_tensors") is not None


class InCompressedTensors(TorchModel):
    """The folder as transformers loads it, computed in fp32. Raises ModelError if it cannot be loaded."""

    caveat = "vLLM and SGLang themselves were not run."

    def __init__(self, folder: Path):
        self.name = f"transformers with compressed-tensors {version('compressed-tensors')}"
        with reading_weights(folder):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        super().__init__(model, load_tokenizer_folder(folder))


class InOwnReader(TorchModel):
    """The folder decoded and computed in fp32. Raises ModelError if it cannot be loaded."""

    name = "transformers, from the decoded folder"
    caveat = (
        "These are the folder's numbers, not vLLM or SGLang. With pip install 'luthier[compressed]' transformers reads "
        "it by itself."
    )

    def __init__(self, folder: Path):
        model = load_model(folder, torch.float32, torch.device("cpu"))
        super().__init__(model, load_tokenizer_folder(folder))

"""A model folder, read back from the disk by transformers."""

from pathlib import Path

import torch

from luthier.export.verify.engines._torch import TorchModel
from luthier.models.inference import load_tokenizer_folder
from luthier.models.load import load_model


class InTransformers(TorchModel):
    """A merged folder with plain transformers, computed in fp32 whatever its weights are stored in.

    Raises ModelError if the folder cannot be loaded.
    """

    def __init__(self, folder: Path):
        super().__init__(
            load_model(folder, torch.float32, torch.device("cpu")), load_tokenizer_folder(folder)
        )

"""Base model and adapter folder, put together by PEFT."""

from importlib.util import find_spec
from pathlib import Path

import torch

from luthier.errors import ModelError
from luthier.export.verify.engines._torch import TorchModel
from luthier.models.inference import load_tokenizer_folder
from luthier.models.load import load_model
from luthier.models.new_tokens import make_room
from luthier.models.quantised.load import Quantisation, open_all

NEEDED = "PEFT, which loads an adapter, is not installed: pip install 'luthier[peft]'"


def installed() -> bool:
    """Whether PEFT is there."""
    return find_spec("peft") is not None


class InPeft(TorchModel):
    """An adapter's folder beside its base model in PEFT, in fp32.

    Args:
        base: folder of the base model.
        adapter: folder in PEFT's layout; its tokenizer is used where it has one.
        quantisation: how the base was stored in training; the adapter then stands beside what these weights decode to.

    Raises ModelError if PEFT is not installed or cannot read the adapter.
    """

    name = "PEFT"

    def __init__(self, base: Path, adapter: Path, quantisation: Quantisation | None = None):
        if not installed():
            raise ModelError(f"{adapter} cannot be checked: {NEEDED}.")
        from peft import PeftModel

        own = adapter if (adapter / "tokenizer_config.json").is_file() else base
        tokenizer = load_tokenizer_folder(own)
        model = load_model(base, torch.float32, torch.device("cpu"), quantisation)
        open_all(model)
        make_room(model, len(tokenizer))
        try:
            around = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"PEFT cannot read the adapter in {adapter}: {first}") from error
        super().__init__(around, tokenizer)

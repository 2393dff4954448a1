"""Adapter, head and base model become one model folder that transformers loads by the class of its head.

Unlike `merge.py` this builds the model in memory: the base on disk has no weights for the head.
"""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig

from luthier.errors import ModelError
from luthier.export.merge import FROM_ADAPTER
from luthier.models.adapter_files import attach_adapter
from luthier.models.compat import bars_on_terminals_only
from luthier.models.head_files import HEAD, read_head
from luthier.models.lora import merge_adapters
from luthier.models.quantised.load import Quantisation, open_all
from luthier.models.value_head import load_with_head
from luthier.runs.atomic import atomic_folder

BESIDE = (HEAD, "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
POOLING = ("1_Pooling", "2_Normalize")


def has_other_head(adapter_folder: Path) -> bool:
    """Whether the adapter is for a model that scores instead of writing."""
    return read_head(adapter_folder) is not None


def merge_head_to_folder(
    base_folder: Path, adapter_folder: Path, out: Path, *, quantisation: Quantisation | None = None
) -> None:
    """Writes base model, head and adapter as one model, in the base's dtype, with the tokenizer of the run.

    With `quantisation` the base's weights become what they decode to when they are stored so.

    Raises:
        ModelError: the folders do not fit each other, or `out` exists.
    """
    if out.exists():
        raise ModelError(f"{out} exists already. Remove it, or give another folder for the merged model.")
    found = read_head(adapter_folder)
    assert found is not None, "asked for adapters with a head only"
    head, pad_token_id = found
    dtype = getattr(AutoConfig.from_pretrained(base_folder, local_files_only=True), "dtype", None)
    model = load_with_head(
        base_folder,
        dtype or torch.float32,
        torch.device("cpu"),
        head,
        pad_token_id=pad_token_id,
        quantisation=quantisation,
    )
    attach_adapter(model, adapter_folder)
    merge_adapters(model)
    open_all(model)
    with atomic_folder(out, replace=False) as partial:
        with bars_on_terminals_only():
            model.save_pretrained(partial)
        for name in (*FROM_ADAPTER, *BESIDE):
            if (adapter_folder / name).is_file():
                shutil.copyfile(adapter_folder / name, partial / name)
        for name in POOLING:
            if (adapter_folder / name).is_dir():
                shutil.copytree(adapter_folder / name, partial / name)

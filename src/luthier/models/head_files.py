"""What lies beside a saved model or adapter with a head of another kind, so that others read it as it was trained.

`head.json` says which head an adapter is for: PEFT's settings hold neither its labels nor the padding token. Embedding
models get the small files by which sentence-transformers knows how to pool.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.errors import ModelError
from luthier.models.value_head import Head
from luthier.runs.atomic import atomic_write_text

HEAD = "head.json"
_TYPES = "sentence_transformers.models."


def save_head(
    head: Head, folder: Path, *, hidden_size: int, max_length: int, pad_token_id: int | None
) -> None:
    """Writes the files that go with the head into the folder of a model or an adapter."""
    _write(folder / HEAD, asdict(head) | {"pad_token_id": pad_token_id})
    if head.kind == "embedding":
        _write_pooling(folder, head, hidden_size, max_length)


def read_head(folder: Path) -> tuple[Head, int | None] | None:
    """The head that an adapter's folder is for, and its padding token; None: it writes.

    Raises:
        ModelError: the file cannot be read.
    """
    path = folder / HEAD
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        pad = found.pop("pad_token_id")
        return Head(**{**found, "labels": tuple(found["labels"])}), pad
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Save the adapter again.") from error


def _write_pooling(folder: Path, head: Head, hidden_size: int, max_length: int) -> None:
    """The modules of sentence-transformers: the model, pooling, and vectors of length 1."""
    names = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": _TYPES + name}
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    pooling: dict[str, Any] = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": head.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": head.pooling == "last",
        "include_prompt": True,
    }
    for name in paths[1:]:
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "2_Normalize" / "config.json", {})


def _write(path: Path, value: Any) -> None:
    atomic_write_text(path, json.dumps(value, indent=2) + "\n")

"""Finished runs of tiny models that can become a GGUF, as training leaves them."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from gguf_models import byte_merging, saved
from lora_models import teach
from luthier.models.adapter_files import save_adapter
from luthier.models.lora import apply_lora
from luthier.runs.folder import RunFolder


def finished_run(
    root: Path, kind: str = "qwen3", trained: str = "adapter", *, more: str = "", **overrides: Any
) -> tuple[RunFolder, PreTrainedModel]:
    """A run's folder, and the model that it trained. `more` is added to its config."""
    base = root / "base"
    model = saved(kind, base, **overrides)
    lora = "lora: {rank: 2}\n" if trained == "adapter" else ""
    folder = RunFolder.create(
        root / "runs", "tiny", config_yaml=f"model: {base}\ndata: rows.jsonl\n{lora}{more}"
    )
    if trained == "adapter":
        apply_lora(model, rank=2)
        teach(model)
        save_adapter(model, folder.adapter, base_name=str(base))
        byte_merging().save_pretrained(folder.adapter)
    else:
        model = saved(kind, folder.model, seed=5, **overrides)
    return folder, model

"""An adapter as a GGUF file of its own, which llama.cpp adds to a base model's file while it runs (`--lora`).

    W' = W + alpha / R · B·A

with A [R, K] and B [M, R] by the name of the weight, and one alpha for all. Where a module's own factor is another, B
takes up the difference; where the base's file has the rows of a weight in another order, B's rows are in that order.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor
from transformers import AutoConfig

from luthier.errors import ModelError
from luthier.export.gguf.known import Architecture, architecture
from luthier.export.merge import empty_model
from luthier.models.adapter_plan import AdapterPlan, plan_all, read_adapter
from luthier.runs.atomic import atomic_file, check_room


def write_adapter(base_folder: Path, adapter_folder: Path, out: Path, *, name: str) -> None:
    """Writes the low-rank updates of an adapter in PEFT's format, in fp32.

    Args:
        base_folder: the base model in Hugging Face's layout; no weights of it are read.
        name: what the file calls the adapter.

    Raises:
        ModelError: llama.cpp has not this architecture, or the adapter changes more than weights by low-rank updates.
        RunError: the disk cannot take it.
    """
    config: Any = AutoConfig.from_pretrained(base_folder, local_files_only=True)
    known = architecture(config)
    plan = plan_all(empty_model(base_folder), read_adapter(adapter_folder))
    _refuse_more(plan, config, adapter_folder)
    first = next(iter(plan.linears.values()))
    alpha = first.scale * first.rank
    check_room(out, sum(4 * (u.a_RK.numel() + u.b_MR.numel()) for u in plan.linears.values()))
    with atomic_file(out) as partial, closing(gguf.GGUFWriter(partial, known.name)) as writer:
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for inside, tensor in _tensors(plan, known, alpha):
            writer.add_tensor(inside, tensor.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _tensors(plan: AdapterPlan, known: Architecture, alpha: float) -> Iterator[tuple[str, Tensor]]:
    """The factors by their names in the file."""
    for path, update in plan.linears.items():
        factor = update.scale * update.rank / alpha
        for name, b_MR in known.changed(f"{path}.weight", update.b_MR.float()):
            inside = known.name_of(name)
            yield f"{inside}.lora_a", update.a_RK
            yield f"{inside}.lora_b", b_MR if factor == 1 else b_MR * factor


def _refuse_more(plan: AdapterPlan, config: Any, folder: Path) -> None:
    found = [name for name, update in plan.linears.items() if update.magnitude_M is not None]
    reason = "DoRA's lengths" if found else ""
    if plan.saved or plan.tokens or plan.biases:
        found = [*plan.saved, *(name for rows in plan.tokens for name in rows.names), *plan.biases]
        reason = "values of its own for whole modules, tokens or biases"
    elif plan.experts:
        found, reason = list(plan.experts), "updates of stacked experts"
    elif tables := [name for name in plan.linears if name.endswith("embed_tokens")]:
        found, reason = tables, "updates of embeddings"
    elif config.tie_word_embeddings and "lm_head" in plan.linears:
        found, reason = (
            ["lm_head"],
            "updates of a head that is the embeddings, of which the base's file has one only",
        )
    elif not plan.linears:
        reason = "no low-rank updates"
    if reason:
        raise ModelError(
            f"{folder} has {reason}{' (' + found[0] + ')' if found else ''}, and llama.cpp adds low-rank updates of "
            "single weights only. Export the merged model: --to gguf:TYPE."
        )

"""An adapter that `peft` computes and its base model become one model folder, where that is possible.

The model is built in memory in fp32, peft adds what the adapter changes to each weight, and the sum is rounded once to
the base's dtype (rounding.py). The merged model is then asked about a few tokens, beside the adapted one.
"""

import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from luthier.errors import ModelError
from luthier.export.merge import FROM_ADAPTER
from luthier.export.rounding import rounded_sum
from luthier.models.compat import bars_on_terminals_only
from luthier.models.load import load_model
from luthier.models.peft_adapters.attach import attach_peft
from luthier.models.peft_adapters.held import PeftAdapter, hold
from luthier.models.quantised.load import Quantisation
from luthier.runs.atomic import atomic_folder

BOUND = 1e-3
"""How far the logits of the merged model may be from those of the adapted one, as a share of their spread, in fp32."""
PROBE = 24
"""Tokens that both are asked about."""


def merge_peft_to_folder(
    base_folder: Path,
    adapter_folder: Path,
    out: Path,
    *,
    quantisation: Quantisation | None = None,
    wide: bool = False,
) -> None:
    """Writes base model and adapter as one model in Hugging Face's layout, in the base's dtype; in fp32 if `wide`.

    Raises:
        ModelError: `out` exists, the folders do not fit each other, or this adapter is no change of weights.
    """
    if out.exists():
        raise ModelError(f"{out} exists already. Remove it, or give another folder for the merged model.")
    dtype = getattr(AutoConfig.from_pretrained(base_folder, local_files_only=True), "dtype", None)
    model = load_model(base_folder, torch.float32, torch.device("cpu"), quantisation)
    kind = torch.float32 if wide or dtype is None else dtype
    before = {name: weight.data.to(kind) for name, weight in model.named_parameters()}
    merge_peft(model, attach_peft(model, adapter_folder))
    if kind is not torch.float32 and quantisation is None:  # of decoded weights nothing is lost in one sense
        for name, weight in model.named_parameters():
            weight.data = rounded_sum(weight.data, before[name], name)
    model.to(dtype=kind)  # pyright: ignore[reportCallIssue]
    with atomic_folder(out, replace=False) as partial:
        with bars_on_terminals_only():
            model.save_pretrained(partial)
        for folder in (base_folder, adapter_folder):
            for name in FROM_ADAPTER:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, partial / name)


def merge_peft(model: PreTrainedModel, adapter: PeftAdapter) -> None:
    """Makes the adapter part of the model's own weights, in place.

    Raises:
        ModelError: it is no change of weights, or peft's sum is not what it computed before.
    """
    if adapter.prompt is not None:
        raise ModelError(
            f"an adapter of the type {adapter.kind} learns what stands before the tokens, which no weight of the model "
            "can hold, so there is nothing to merge. Use base model and adapter together: peft's "
            "PeftModel.from_pretrained loads both, and so does `luthier chat`."
        )
    merge = getattr(adapter.model.base_model, "merge_and_unload", None)
    if merge is None:
        raise _unmerged(adapter, "peft has no merging of it")
    expected = _logits(model)
    try:
        merge(safe_merge=True)
    except (NotImplementedError, ValueError, AttributeError, TypeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _unmerged(adapter, why) from error
    hold(model, None)
    off = float((_logits(model) - expected).norm() / (expected - expected.mean()).norm())
    if not off <= BOUND:
        raise _unmerged(
            adapter, f"the merged model's logits are {off:.1e} of their spread off (limit {BOUND:.0e})"
        )


def _unmerged(adapter: PeftAdapter, why: str) -> ModelError:
    return ModelError(
        f"an adapter of the type {adapter.kind} cannot be merged: {why}. Use base model and adapter together: peft's "
        "PeftModel.from_pretrained loads both, and so does `luthier chat`."
    )


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    """What the model says of a few random tokens, in evaluation mode."""
    model.eval()
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, PROBE), generator=torch.Generator().manual_seed(0))
    return model(input_ids=ids.to(model.device), use_cache=False).logits.float()

"""Adapter and base model on disk become one model folder, shard by shard and tensor by tensor: no model is built, and
one tensor is in memory.

    W' = W + s · B·A (with DoRA's lengths, if it has them), computed in fp32, rounded once to the dtype of W on disk, so
    that small updates are not lost in bfloat16 (rounding.py)

W is the weight on disk, or what it decodes to when it is stored in few bits, if that is what the adapter was trained
beside.

Names, classes and ties come from an empty model (on the meta device, so without weights), and from
transformers' own table of names that it changes while loading. Everything that is not a targeted weight is
copied as it is.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.errors import ModelError, RunError
from luthier.export.rounding import rounded_sum
from luthier.export.streamed import TYPES, Planned, write_streamed
from luthier.kernels.quant.base import Scheme, store
from luthier.models.adapter_files import attach_adapter
from luthier.models.adapter_plan import AdapterPlan, PlannedLinear, PlannedTokens, plan_all, read_adapter
from luthier.models.checkpoint_names import checkpoint_names
from luthier.models.compat import bars_on_terminals_only, plain_attention
from luthier.models.load import load_model
from luthier.models.lora import merge_adapters
from luthier.models.lora_targets import owners
from luthier.models.lora_weight import updated_wide
from luthier.models.new_tokens import make_room, mean_row, num_rows, token_weights
from luthier.models.planned_tokens import rows_needed
from luthier.models.quantised.load import Quantisation, names_to_store, open_all
from luthier.models.quantised.packed import quantisation_on_disk
from luthier.models.quantised.tables import table_names
from luthier.models.quantised.unpack import plain_beside
from luthier.runs.atomic import atomic_folder, check_room

Progress = Callable[[int, int, str], None]
"""Called after each shard with the number of shards done, of all, and the name of the one that is done."""

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Weights in any format, and what training leaves: not part of what describes the model.
NOT_COPIED = (
    "*.safetensors",
    "*.index.json",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx*",
    "*.ckpt*",
)
# Saved with the adapter because they were used in training; they win over the base's.
FROM_ADAPTER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


Change = PlannedLinear | PlannedTokens | Tensor | None


@dataclass(frozen=True)
class Output:
    """A tensor of the merged checkpoint, made from a tensor of the base."""

    name: str
    change: Change
    """An update to add, a tensor that takes its place, rows of a few tokens, or nothing: the same values."""
    rows: int = 0
    """Rows that it must have, those that the base lacks included; 0: as many as the base's."""
    stored: Scheme | None = None
    """How the weight was stored in training; it becomes what it then decodes to."""


def merge_to_folder(
    base_folder: Path,
    adapter_folder: Path,
    out: Path,
    *,
    progress: Progress | None = None,
    quantisation: Quantisation | None = None,
    wide: bool = False,
) -> None:
    """Writes base model and adapter as one model in Hugging Face's layout, in the base's dtypes; what changes in fp32
    if `wide`, for a folder that is rounded to something else afterwards.

    Configuration, generation settings, tokenizer and chat template are copied; those saved with the adapter
    win. If the adapter takes tied embeddings apart, the head gets weights of its own and config.json says
    so.

    With `quantisation` every weight that is stored so becomes what it decodes to, whether it is adapted or not: the
    model that was trained, in the base's dtypes. A base that others stored in few bits is decoded first, into the
    dtype of its config.json; the sum has no place on their grid.

    Raises ModelError if the folders do not fit each other or `out` exists; RunError if the disk cannot take
    it. Nothing is left at `out` then.
    """
    if out.exists():
        raise ModelError(f"{out} exists already. Remove it, or give another folder for the merged model.")
    if quantisation_on_disk(base_folder) is not None:
        with plain_beside(base_folder, out) as plain_folder:
            merge_to_folder(plain_folder, adapter_folder, out, progress=progress, wide=wide)
        return
    shards = base_shards(base_folder)
    if _read_json(base_folder / "config.json").get("quantization_config"):
        raise ModelError(
            f"{base_folder} holds quantised weights (quantization_config) of stacked experts, which cannot be "
            "changed exactly. Merge into the model that it was quantised from."
        )
    skeleton = empty_model(base_folder)
    files = read_adapter(adapter_folder)
    before = make_room(skeleton, rows_needed(skeleton, files.config, files.tensors))
    plan = plan_all(skeleton, files)
    if plan.experts:
        _merge_loaded(base_folder, adapter_folder, out, quantisation)
        return
    plain = _stored_weights(skeleton, quantisation) if quantisation is not None else {}
    outputs, cut = _outputs(skeleton, plan, shards, base_folder, num_rows(skeleton) > before, plain)
    check_room(out, _size(shards))
    with atomic_folder(out, replace=False) as partial:
        _copy_description(base_folder, adapter_folder, partial)
        if cut:
            _say_in_config(partial / "config.json", "tie_word_embeddings", False)
        if num_rows(skeleton) > before:
            _say_in_config(partial / "config.json", "vocab_size", num_rows(skeleton))
        added: dict[str, tuple[str, int]] = {}
        for done, shard in enumerate(shards, 1):
            new = _merge_shard(shard, partial / shard.name, outputs, wide=wide)
            added |= {name: (shard.name, size) for name, size in new.items()}
            if progress is not None:
                progress(done, len(shards), shard.name)
        _write_index(base_folder, partial, added)


def _stored_weights(model: PreTrainedModel, how: Quantisation) -> dict[str, Scheme]:
    """The weights that are stored so, by name, and how; a weight under each of the names that share it."""
    found = {f"{name}.weight": how.scheme for name in names_to_store(model, how)}
    if how.tables is not None:
        found |= {f"{name}.weight": how.tables for name in table_names(model, how.stays)}
    return found


def _merge_loaded(base: Path, adapter: Path, out: Path, quantisation: Quantisation | None) -> None:
    """The same with the whole model in memory: stacked experts are put together from many tensors on disk, which only
    transformers takes apart again."""
    kind = getattr(AutoConfig.from_pretrained(base, local_files_only=True), "dtype", None) or torch.float32
    model = load_model(base, kind, torch.device("cpu"), quantisation)
    attach_adapter(model, adapter)
    merge_adapters(model)
    open_all(model)
    with atomic_folder(out, replace=False) as partial:
        _copy_description(base, adapter, partial)
        with plain_attention(model), bars_on_terminals_only():
            model.save_pretrained(partial)


def base_shards(folder: Path) -> dict[Path, list[str]]:
    """The safetensors files of a model folder and the names of the tensors in each. Only headers are read."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no model: config.json is missing. Give the folder of the base model."
        )
    index = folder / INDEX
    if index.is_file():
        files = [folder / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    else:
        files = [folder / WEIGHTS]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f"{folder} lacks weights: {', '.join(missing)}. Merging reads safetensors; convert a folder with "
            "other files (.bin, .gguf) by loading it in transformers and saving it again."
        )
    return {file: _tensor_names(file) for file in files}


def empty_model(folder: Path) -> PreTrainedModel:
    """The model that the folder describes, with names, classes, shapes and ties but without weights."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, OSError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"transformers cannot build the model in {folder}: {first}") from error
    assert isinstance(model, PreTrainedModel)
    return model


def _outputs(
    model: PreTrainedModel,
    plan: AdapterPlan,
    shards: Mapping[Path, list[str]],
    folder: Path,
    grown: bool,
    stored: Mapping[str, Scheme],
) -> tuple[dict[str, list[Output]], bool]:
    """What is made from each tensor of the base (the others are copied), and whether a tie is cut."""
    on_disk = checkpoint_names(model, [name for names in shards.values() for name in names])
    wanted, ties, cut = _wanted(model, plan)
    rows = {name: len(weight) for name, weight in token_weights(model).items()} if grown else {}
    wanted = {**{name: None for name in (*rows, *stored) if name in on_disk}, **wanted}
    outputs: dict[str, list[Output]] = {}
    lost = []
    for key, change in wanted.items():
        tied = ties.get(key, [])
        source = next((on_disk[name] for name in [key, *tied] if name in on_disk), None)
        if source is None:
            lost.append(key)
        elif key in on_disk and (change is not None or key in rows or key in stored):
            outputs.setdefault(source, []).append(
                Output(on_disk[key], change, rows.get(key, 0), stored.get(key))
            )
        elif key not in on_disk and cut.intersection(tied):
            outputs.setdefault(source, []).append(Output(key, change, rows.get(key, 0)))
    if lost:
        raise ModelError(
            f"{folder} has no tensor that can take these updates, because transformers assembles the weights "
            f"from several tensors or they are missing: {', '.join(lost[:20])}"
            + (f" and {len(lost) - 20} more" if len(lost) > 20 else "")
            + ". Load base and adapter, merge them in memory (`merge_adapters`) and save the model instead."
        )
    return outputs, bool(cut)


def _wanted(model: nn.Module, plan: AdapterPlan) -> tuple[dict[str, Change], dict[str, list[str]], set[str]]:
    """Weights that need a value of their own, the weights each is tied to, and those that the adapter takes
    apart.

    A weight whose partner changes alone needs one too: what it was.
    """
    changes: dict[str, Change] = {f"{name}.weight": p for name, p in plan.linears.items()}
    apart = {*changes, *(f"{name}.weight" for name in plan.untied)}
    for group in plan.tokens:
        changes.update({f"{name}.weight": group for name in group.names})
    changes.update({f"{name}.bias": tensor for name, tensor in plan.biases.items()})
    for name, weights in plan.saved.items():
        changes.update({f"{name}.{part}": tensor for part, tensor in weights.items()})
    groups = [[f"{path}.weight" for path in paths] for paths in owners(model).values() if len(paths) > 1]
    with_rows = [{f"{name}.weight" for name in group.names} for group in plan.tokens]
    apart |= {
        key for keys in with_rows for group in groups if keys & {*group} < {*group} for key in keys & {*group}
    }
    ties = {key: group for group in groups for key in group}
    cut = apart.intersection(ties)
    return {**{partner: None for key in cut for partner in ties[key]}, **changes}, ties, cut


def _merge_shard(
    source: Path, target: Path, outputs: Mapping[str, list[Output]], *, wide: bool
) -> dict[str, int]:
    """Writes one shard, and tells the names of tensors in it that the base has not or has smaller, and by how much.

    One tensor is read, changed and written at a time.
    """
    with safe_open(source, framework="pt") as file:
        made: dict[str, tuple[str, Output | None]] = {name: (name, None) for name in file.keys()}  # noqa: SIM118
        sizes = {name: _planned(file, name, None, name, wide=wide).size for name in made}
        made |= {output.name: (name, output) for name in sizes for output in outputs.get(name, ())}
        planned = [_planned(file, name, output, key, wide=wide) for key, (name, output) in made.items()]

        def tensor_of(key: str) -> Tensor:
            name, output = made[key]
            weight = file.get_tensor(name)
            return weight if output is None else _changed(weight, output, source, wide=wide)

        try:
            write_streamed(target, planned, tensor_of, file.metadata() or {"format": "pt"})
        except OSError as error:
            raise RunError(
                f"the merged {target.name} cannot be written: {error.strerror or error}. Nothing was left behind. "
                "Free some space, or give a folder on another disk."
            ) from error
    return {one.name: more for one in planned if (more := one.size - sizes.get(one.name, 0)) > 0}


def _planned(file: Any, name: str, output: Output | None, key: str, *, wide: bool) -> Planned:
    """What a tensor of the base becomes: its type and shape, without reading it."""
    told = file.get_slice(name)
    stored, shape = told.get_dtype(), tuple(told.get_shape())
    if stored not in TYPES:
        raise ModelError(
            f"{name} is stored as {stored}, which is not known here. Merge into another copy of the base."
        )
    if output is None:
        return Planned(key, TYPES[stored], shape)
    changes = output.change is not None or output.stored is not None
    if isinstance(output.change, Tensor):
        shape = tuple(output.change.shape)
    elif output.rows:
        shape = (max(output.rows, shape[0]), *shape[1:])
    return Planned(key, torch.float32 if wide and changes else TYPES[stored], shape)


def _changed(weight: Tensor, output: Output, source: Path, *, wide: bool) -> Tensor:
    change = output.change
    if output.rows > len(weight):
        weight = torch.cat([weight, mean_row(weight).expand(output.rows - len(weight), *weight.shape[1:])])
    if change is None and output.stored is None:
        return weight.clone()  # the same values under a second name may not share memory in a file
    if weight.dtype not in FLOATS:
        raise ModelError(
            f"{output.name} in {source} is stored as {weight.dtype}, which cannot take an update exactly. "
            "Merge into a model in float32, bfloat16 or float16."
        )
    if wide:
        weight = weight.float()
    if isinstance(change, Tensor):
        return change.to(weight.dtype)
    if isinstance(change, PlannedTokens):
        return weight.index_copy(0, torch.tensor(change.tokens), change.rows_ND.to(weight.dtype))
    kind = weight.dtype
    if output.stored is not None:
        weight = store(output.stored, weight, torch.float32).weight()
    if change is None:
        return weight.to(kind)
    factors = change.a_RK.float(), change.b_MR.float()
    total = updated_wide(weight, factors, change.scale, change.transposed, change.magnitude_M)
    return (
        total.to(kind) if output.stored is not None else rounded_sum(total, weight, output.name)
    ).contiguous()


def _copy_description(base: Path, adapter: Path, out: Path) -> None:
    """Everything but weights. A whole tokenizer saved with the adapter takes the place of the base's."""
    whole = all((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    for file in sorted(base.iterdir()):
        replaced = whole and file.name in FROM_ADAPTER and file.name != "tokenizer.model"
        hidden = file.name.startswith(".") or any(fnmatch(file.name, pattern) for pattern in NOT_COPIED)
        if file.is_file() and not replaced and not hidden:
            shutil.copyfile(file, out / file.name)
    templates = "additional_chat_templates"
    if (base / templates).is_dir() and not whole:
        shutil.copytree(base / templates, out / templates)
    for name in FROM_ADAPTER:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, out / name)


def _say_in_config(path: Path, key: str, value: bool | int) -> None:
    """Writes it into config.json, into the part about text, too, where there is one."""
    config = _read_json(path)
    for section in (config, config.get("text_config")):
        if isinstance(section, dict):
            section[key] = value
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_index(base: Path, out: Path, added: Mapping[str, tuple[str, int]]) -> None:
    """The base's index, with the tensors that it has not, or smaller: their shard and their size."""
    if not (base / INDEX).is_file():
        return
    if not added:
        shutil.copyfile(base / INDEX, out / INDEX)
        return
    index = _read_json(base / INDEX)
    index["weight_map"] |= {name: shard for name, (shard, _) in added.items()}
    if "total_size" in index.get("metadata", {}):
        index["metadata"]["total_size"] += sum(size for _, size in added.values())
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _size(shards: Iterable[Path]) -> int:
    """Bytes on disk."""
    return sum(shard.stat().st_size for shard in shards)


def _tensor_names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ModelError(f"{path} cannot be read: {error}. Download or save the model again.") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Download or save the model again.") from error

"""torchtune's model builders, and where the weights come from."""

import re
from pathlib import Path
from typing import Any

from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.names import put_model
from luthier.migrate.quantised import put_quant
from luthier.migrate.readers import is_off, names, number, switch, text, whole

_DOWNLOAD = re.compile(r"tune download\s+(?P<name>[\w.-]+/[\w.-]+)(?:.*?--output-dir[ =](?P<folder>\S+))?")
_OWNERS = (  # whose models have names like these
    (re.compile(r"(Meta-)?(Llama|CodeLlama)-[\w.-]+", re.I), "meta-llama"),
    (re.compile(r"Qwen[\d.]*-[\w.-]+", re.I), "Qwen"),
    (re.compile(r"(Mistral|Mixtral)-[\w.-]+", re.I), "mistralai"),
    (re.compile(r"(gemma|codegemma)-[\w.-]+", re.I), "google"),
    (re.compile(r"phi-[\w.-]+", re.I), "microsoft"),
    (re.compile(r"Falcon3?-[\w.-]+", re.I), "tiiuae"),
)
_MODULES = {  # torchtune's names for what the hub's models call otherwise
    "q_proj": ["q_proj"],
    "k_proj": ["k_proj"],
    "v_proj": ["v_proj"],
    "output_proj": ["o_proj"],
}
_MLP = ["gate_proj", "up_proj", "down_proj"]
_FUSED = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj") | {
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Layers that Phi 3 has as one."""
_LORA = {
    "lora_attn_modules": "names of layers",
    "apply_lora_to_mlp": "layers of the feed-forward part",
    "apply_lora_to_output": "the output layer",
}
_SHAPES = (
    *("vocab_size", "num_layers", "num_heads", "num_kv_heads", "embed_dim", "max_seq_len", "attn_dropout"),
    *("intermediate_dim", "norm_eps", "rope_base", "scale_factor", "tie_word_embeddings", "head_dim"),
)
_KEYS = (
    "_component_",
    *_LORA,
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "use_dora",
    "quantize_base",
    *_SHAPES,
)


def put_weights(draft: Draft, model: dict[str, Any], source: str) -> None:
    """Sets `model` and `lora` from the model's builder and the checkpointer. `source`: the file's text."""
    builder = str(model.get("_component_", "")).rpartition(".")[2]
    if "vision" in builder or "flamingo" in builder or "clip" in builder or "image_size" in model:
        draft.block("model", f"{builder} reads images; Luthier trains on text only")
        return
    _put_name(draft, builder, source)
    draft.find("model", Kind.MAPPED, f"built by {builder}", "model.name")
    if builder.startswith(("lora_", "qlora_", "dora_", "qdora_")):
        _put_adapter(draft, model, builder)
    for key in model:
        if key in _SHAPES:
            draft.none(f"model.{key}", "the model's shape is that of its config.json")
        elif key not in _KEYS:
            draft.unknown(f"model.{key}", _KEYS)


def _put_name(draft: Draft, builder: str, source: str) -> None:
    """The folder of the weights, if it is here; else the hub's model that was downloaded to it."""
    checkpointer = draft.given.get("checkpointer")
    folder = checkpointer.get("checkpoint_dir") if isinstance(checkpointer, dict) else None
    if not isinstance(folder, str):
        draft.block("checkpointer", "has no checkpoint_dir, so it is not known which model is trained")
        return
    key = "checkpointer.checkpoint_dir"
    if (Path(folder) / "config.json").is_file():
        put_model(draft, key, folder)
        return
    hub = hub_name(folder, source)
    if hub is None:
        note = f"{folder} is not here; name a folder in the hub's layout, or a hub id"
        draft.map(key, "model.name", folder, note)
        return
    put_model(draft, key, hub)
    draft.note("model.name", f"the hub's model, because {folder} is not here")


def hub_name(folder: str, source: str) -> str | None:
    """The hub's name of a model that lies in a folder, from the file's own comment or from the folder's name."""
    folder = folder.rstrip("/").removesuffix("/original")
    last = folder.rpartition("/")[2]
    for match in _DOWNLOAD.finditer(source):
        target = match["folder"]
        if (target and target.rstrip("/") == folder) or match["name"].rpartition("/")[2] == last:
            return match["name"]
    for pattern, owner in _OWNERS:
        if pattern.fullmatch(last):
            return f"{owner}/{last}"
    return None


def _put_adapter(draft: Draft, model: dict[str, Any], builder: str) -> None:
    """Sets the section `lora`. The defaults are those of torchtune's builders."""
    draft.put("lora.rank", whole(model.get("lora_rank", 8)))
    draft.put("lora.alpha", number(model.get("lora_alpha", 16)))
    if "lora_dropout" in model:
        draft.put("lora.dropout", float(number(model["lora_dropout"])))
    for key in ("lora_rank", "lora_alpha", "lora_dropout"):
        if key in model:
            draft.find(f"model.{key}", Kind.MAPPED, "", f"lora.{key.removeprefix('lora_')}")
    _put_targets(draft, model, builder)
    if builder.startswith("q") or not is_off(model.get("quantize_base")):
        put_quant(draft, "model.quantize_base" if "quantize_base" in model else "model", 4)
    elif "quantize_base" in model:
        draft.needless("model.quantize_base", "is switched off")
    if "dora" in builder or not is_off(model.get("use_dora")):
        draft.put("lora.dora", True)
        if "use_dora" in model:
            draft.find("model.use_dora", Kind.MAPPED, "", "lora.dora")
    elif "use_dora" in model:
        draft.needless("model.use_dora", "is switched off")


def _put_targets(draft: Draft, model: dict[str, Any], builder: str) -> None:
    asked = names(model.get("lora_attn_modules", ["q_proj", "v_proj"]))
    target = [ours for name in asked for ours in _MODULES.get(name, [name])]
    if switch(model.get("apply_lora_to_mlp", False)):
        target += _MLP
    if switch(model.get("apply_lora_to_output", False)):
        target.append("lm_head")
    if "phi3" in builder or "phi4" in builder:
        target = list(dict.fromkeys(_FUSED.get(name, name) for name in target))
    draft.put("lora.target", target)
    for key in _LORA:
        if key in model:
            draft.find(f"model.{key}", Kind.MAPPED, "", "lora.target")


def put_tokenizer(draft: Draft) -> int | None:
    """Says what becomes of the tokenizer; its longest row in tokens, or None."""
    tokenizer = draft.given.get("tokenizer")
    if not isinstance(tokenizer, dict):
        return None
    draft.needless("tokenizer", "the model's own tokenizer is used, with its own chat template")
    for key, value in tokenizer.items():
        if key == "prompt_template" and not is_off(value):
            draft.none("tokenizer.prompt_template", f"{value}: the model's own chat template is used")
    longest = tokenizer.get("max_seq_len")
    return None if is_off(longest) else whole(text(longest))

"""Groups of settings that Trainer-based tools share: precision, evaluation, checkpoints, length."""

from dataclasses import dataclass

from luthier.migrate.draft import Draft
from luthier.migrate.readers import is_off, number, switch, text, whole


@dataclass(frozen=True)
class Length:
    """Where a tool has the length of a run."""

    epochs_key: str
    steps_key: str = "max_steps"
    default_epochs: float = 1.0


def put_length(draft: Draft, keys: Length) -> None:
    """Sets `train.steps`, or `train.epochs`."""
    steps = draft.get(keys.steps_key, whole, 0)
    if keys.steps_key in draft.given and steps <= 0:
        draft.needless(keys.steps_key, "is off")
    if steps > 0:
        draft.map(keys.steps_key, "train.steps", steps)
        if keys.epochs_key in draft.given:
            draft.needless(keys.epochs_key, f"has no effect beside {keys.steps_key}")
        return
    epochs = draft.get(keys.epochs_key, number)
    if epochs is not None:
        draft.map(keys.epochs_key, "train.epochs", float(epochs))
    elif keys.default_epochs != 1.0:
        draft.put("train.epochs", keys.default_epochs, f"the default of {draft.tool}")


def put_clipping(draft: Draft) -> None:
    """Sets `train.max_grad_norm`; 0 switches clipping off."""
    norm = draft.get("max_grad_norm", number)
    if norm is not None:
        draft.map("max_grad_norm", "train.max_grad_norm", float(norm) if norm > 0 else None)


def put_precision(draft: Draft, half: tuple[str, ...], brain: tuple[str, ...]) -> None:
    """Sets `model.dtype` from the flags for float16 (`half`) and bfloat16 (`brain`).

    Flags that are off name what is left: if all that are given are off, weights are float32.
    """
    chosen = None
    for key, dtype in [*((key, "bfloat16") for key in brain), *((key, "float16") for key in half)]:
        if key not in draft.given:
            continue
        value = draft.given[key]
        if value in ("auto", "full"):
            on, word = True, "auto" if value == "auto" else dtype
        else:
            on, word = draft.get(key, switch, False), dtype
        if not on:
            draft.needless(key, "is switched off")
        elif chosen:
            draft.needless(key, f"has no effect beside {chosen}")
        else:
            chosen = key
            note = "weights of this kind, with float32 copies in the optimizer" if word != "auto" else ""
            draft.map(key, "model.dtype", word, note)
    asked = [key for key in (*brain, *half) if key in draft.given]
    if asked and not chosen:
        draft.put("model.dtype", "float32", f"{' and '.join(asked)} are off")


def put_evaluation(draft: Draft, *, holds_out: bool) -> None:
    """Sets `eval.every` from `eval_strategy` and `eval_steps`."""
    strategy_key = "eval_strategy" if "eval_strategy" in draft.given else "evaluation_strategy"
    strategy = draft.get(strategy_key, text, "")
    steps = draft.get("eval_steps", number, 0)
    for key in (strategy_key, "eval_steps"):
        if key not in draft.given:
            continue
        if not holds_out:
            draft.needless(key, "has no effect: no rows are held out")
        elif is_off(strategy) and strategy_key in draft.given:
            draft.needless(key, "evaluation is off between the steps; Luthier evaluates at the end")
        elif strategy == "epoch":
            draft.none(key, "evaluations are counted in steps (eval.every); it is evaluated at the end")
        elif key == strategy_key:
            draft.needless(key, "follows from eval_steps")
        elif steps >= 1:
            draft.map(key, "eval.every", int(steps))
        elif steps > 0:
            _put_share(draft, key, steps, "eval.every")
        else:
            draft.needless(key, "is off")


def put_checkpoints(draft: Draft) -> None:
    """Sets `checkpoint.every` and `checkpoint.keep`."""
    strategy = draft.get("save_strategy", text, "steps")
    steps = draft.get("save_steps", number, 0)
    if "save_strategy" in draft.given:
        always = "a run is saved when it is interrupted and at the end"
        if strategy == "epoch":
            draft.none("save_strategy", f"checkpoints are counted in steps (checkpoint.every); {always}")
        elif strategy == "best":
            draft.needless("save_strategy", "the best checkpoint is always kept, if rows are held out")
        else:
            draft.needless("save_strategy", always if strategy == "no" else "follows from save_steps")
    if "save_steps" in draft.given:
        if strategy in ("no", "epoch") or steps <= 0:
            draft.needless("save_steps", "has no effect")
        elif steps >= 1:
            draft.map("save_steps", "checkpoint.every", int(steps))
        else:
            _put_share(draft, "save_steps", steps, "checkpoint.every")
    kept = draft.get("save_total_limit", whole, 0)
    if "save_total_limit" in draft.given:
        if kept > 0:
            draft.map("save_total_limit", "checkpoint.keep", kept)
        else:
            draft.needless("save_total_limit", "is off")
    if "load_best_model_at_end" in draft.given:
        draft.needless("load_best_model_at_end", "the best checkpoint is kept beside the last one")


def _put_share(draft: Draft, key: str, share: float, target: str) -> None:
    """A share of all steps; known in steps only where the run's length is."""
    total = draft.values.get("train", {}).get("steps")
    if total:
        every = max(1, round(share * total))
        draft.map(key, target, every, f"{share:g} of {total:,} steps")
    else:
        draft.none(key, f"is a share of all steps, but {target} counts steps; set it when you know how many")


def put_recomputing(draft: Draft, key: str) -> None:
    """What is said about gradient checkpointing, and `memory.activations` where it asks for RAM."""
    value = draft.given.get(key)
    if value is None:
        return
    word = value.strip().lower() if isinstance(value, str) else value
    if word in ("offload", "legacy", "unsloth"):
        draft.map(key, "memory.activations", "offload", "inputs of layers go to RAM")
    elif word in ("offload_disk", "disk"):
        draft.none(key, "activations go to RAM at most, never to the disk (memory.activations: offload)")
    elif is_off(word):
        draft.needless(key, "memory.activations keeps all that fits")
    else:
        draft.needless(key, "memory.activations recomputes what does not fit; write recompute for all layers")


def put_compile(draft: Draft, key: str) -> None:
    """Sets `model.compile`."""
    if key in draft.given and draft.given[key] != "auto" and draft.get(key, switch, False):
        draft.map(key, "model.compile", True, "only for layers that Luthier does not write by hand")
    elif key in draft.given:
        draft.needless(key, "layers are written by hand (model.fused)")


def put_place(draft: Draft, *keys: str) -> None:
    """Sets `model.device: cpu` where a key asks for it."""
    for key in keys:
        if key in draft.given and draft.get(key, switch, False):
            draft.map(key, "model.device", "cpu")
        elif key in draft.given:
            draft.needless(key, "is switched off")

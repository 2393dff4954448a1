"""Schedules of the learning rate by the names of transformers, and by those that tools add."""

from dataclasses import dataclass
from typing import Any

from luthier.config.words import did_you_mean
from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind

_SAME = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "warmup_stable_decay": "wsd",
    "wsd": "wsd",
}
_NEAR = {
    "cosine_with_restarts": ("cosine", "it falls once, without restarts"),
    "polynomial": ("linear", "it falls in a straight line, which is polynomial of power 1"),
    "inverse_sqrt": ("cosine", "inverse square root is not there"),
    "reduce_lr_on_plateau": ("constant", "it does not fall when the loss stalls"),
    "greedy": ("constant", "it does not follow the loss"),
    "one_cycle": ("cosine", "it rises over the warm-up and falls once; momentum stays"),
    "rex": ("cosine", "REX is not there"),
    "jagged": ("cosine", "it does not restart"),
}


@dataclass(frozen=True)
class Warmup:
    """How long the learning rate rises: keys of the source and their values; None where absent."""

    steps_key: str = ""
    steps: float | None = None
    ratio_key: str = ""
    ratio: float | None = None


def put_schedule(draft: Draft, key: str | None, name: str, warmup: Warmup, *, default_ratio: float) -> None:
    """Sets `schedule` from the name of a schedule and its warm-up.

    `key`: where the source has the name; None if it is the tool's default. `default_ratio`: the warm-up of
    the tool as a share of all steps, where the source sets none.
    """
    name = name.lower().rpartition(".")[2]
    if draft.values.get("optim", {}).get("name") == "schedule_free":
        draft.put("schedule.name", "constant", "schedule_free stands in for a learning rate that falls")
        if key:
            draft.none(
                key, f"{name} becomes constant: schedule_free stands in for a learning rate that falls"
            )
    elif name in _SAME:
        ours = _SAME[name]
        note = "" if key else f"the default of {draft.tool}"
        if key:
            draft.map(key, "schedule.name", ours)
        else:
            draft.put("schedule.name", ours, note)
    elif name in _NEAR:
        ours, why = _NEAR[name]
        draft.put("schedule.name", ours, f"instead of {name}: {why}")
        draft.none(key or "lr_scheduler", f"{name} becomes {ours}: {why}")
    else:
        hint = did_you_mean(name, [*_SAME, *_NEAR])
        draft.find(key or "lr_scheduler", Kind.UNKNOWN, f"{name} is no schedule that is known here{hint}")
    _put_warmup(draft, name, warmup, default_ratio)


def put_decay(draft: Draft, options: dict[str, Any]) -> bool:
    """Sets the decay of wsd from `num_decay_steps` of `lr_scheduler_kwargs`; whether it is the only one of them."""
    steps = options.get("num_decay_steps")
    if set(options) - {"decay_type"} != {"num_decay_steps"} or not isinstance(steps, int) or steps < 1:
        return False
    if options.get("decay_type") == "1-sqrt":
        draft.put("schedule.decay_shape", "1-sqrt")
    elif options.get("decay_type") not in (None, "linear", "cosine"):
        return False
    bent = options.get("decay_type") in (None, "cosine")
    note = "in a straight line; there, it is bent like a cosine" if bent else ""
    draft.map("lr_scheduler_kwargs", "schedule.decay_steps", steps, note)
    return True


def _put_warmup(draft: Draft, name: str, warmup: Warmup, default_ratio: float) -> None:
    if name == "constant":
        for key in (warmup.steps_key, warmup.ratio_key):
            if key and key in draft.given:
                draft.needless(key, "has no effect with a constant learning rate without warm-up")
        draft.put("schedule.warmup_steps", 0)
    elif warmup.steps:
        if warmup.ratio_key and warmup.ratio:
            draft.needless(warmup.ratio_key, f"has no effect beside {warmup.steps_key}")
        elif warmup.ratio_key and warmup.ratio_key in draft.given:
            draft.needless(warmup.ratio_key, "is zero")
        if 0 < warmup.steps < 1:
            note = "below 1, so a share of all steps"
            draft.map(warmup.steps_key, "schedule.warmup_ratio", float(warmup.steps), note)
        else:
            draft.map(warmup.steps_key, "schedule.warmup_steps", int(warmup.steps))
    elif warmup.ratio is not None:
        if warmup.steps_key and warmup.steps_key in draft.given:
            draft.needless(warmup.steps_key, f"is zero, so {warmup.ratio_key} counts")
        draft.map(warmup.ratio_key, "schedule.warmup_ratio", float(warmup.ratio))
    elif warmup.steps is not None:
        draft.map(warmup.steps_key, "schedule.warmup_steps", 0)
    else:
        draft.put("schedule.warmup_ratio", default_ratio, f"the default of {draft.tool}")


def fit_warmup(draft: Draft) -> None:
    """Ends a warm-up in steps with the run, where it would be longer; there, the run just ends within it."""
    schedule, total = draft.values.get("schedule", {}), draft.values.get("train", {}).get("steps")
    if total and (schedule.get("warmup_steps") or 0) > total:
        note = f"{schedule['warmup_steps']:,} in the source: there, the run ends before the peak is reached"
        draft.put("schedule.warmup_steps", total, note)

"""The arithmetic of the activation plan: numbers in, one level for each layer out. No torch, no state.

Memory of one micro-batch of T tokens:

    need = fixed + T · (scale · peak + extra)

`peak` is the most that the layers hold at once, in bytes per token. It is reached when the backward pass begins,
when all that was kept is there, or later: a layer that is recomputed holds all its activations for a moment, on top
of what the layers below it keep. `fixed` does not grow with T; `scale` and `extra` correct the formula by what was
measured (`Correction`).

From the least memory upwards, layers are raised to a level that keeps more, in the order of FLOPs saved per byte,
until the next one would not fit. Among equals the last layer is raised first: then the layers that are recomputed
come last in the backward pass, when the others have given their memory back. Because that order does not depend on
the budget, the plan for more memory keeps at least all that the plan for less memory keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from luthier.models.activations.levels import Level, Plannable

GB = 10**9


@dataclass(frozen=True)
class Option:
    """What one level of a layer costs."""

    level: Level
    bytes: int
    """Kept on the device, per token."""
    flops: float
    """Done again, per token."""


@dataclass(frozen=True)
class Correction:
    """What measuring has taught about the formula."""

    scale: float = 1.0
    """Factor on what the layers keep; below 1 where the formula promised too much."""
    extra: float = 0.0
    """Bytes per token on top: gradients and buffers of the layer in flight."""


@dataclass(frozen=True)
class Budget:
    """What there is, and what is spent before any layer keeps anything."""

    bytes: int
    """Most that a micro-batch may take."""
    fixed: int = 0
    """Taken whatever the number of tokens: a chunk of logits, gradients of the weights."""
    correction: Correction = Correction()


@dataclass(frozen=True)
class Plan:
    """A level for each layer, and the numbers it rests on."""

    levels: tuple[Level, ...]
    tokens: int
    """The largest micro-batch it was made for."""
    need: int
    """Bytes that such a micro-batch is expected to take."""
    budget: int
    """Bytes it may take."""

    @property
    def fits(self) -> bool:
        """Whether the need is within the budget; if not, nothing less can be kept."""
        return self.need <= self.budget

    def line(self) -> str:
        """The plan in one line for a person."""
        names = {
            Level.KEEP_ALL: "kept",
            Level.KEEP_ATTENTION: "half recomputed",
            Level.KEEP_INPUT: "recomputed",
            Level.OFFLOAD_INPUT: "recomputed from RAM",
        }
        counts = {name: self.levels.count(level) for level, name in names.items()}
        parts = [f"{count} {name}" for name, count in counts.items() if count]
        if len(parts) == 1:
            name = next(name for name, count in counts.items() if count)
            parts = [f"all {len(self.levels)} layers {name}"]
        elif parts:
            parts[0] = parts[0].replace(" ", f" of {len(self.levels)} layers ", 1)
        size = f"{self.need / GB:.1f} of {self.budget / GB:.1f} GB for {self.tokens:,} tokens"
        rest = "" if self.fits else "; if that is too much, lower train.tokens_per_micro_batch"
        return f"activations: {', '.join(parts) or 'no layers'} ({size}){rest}"


def options_of(layer: Plannable) -> tuple[Option, ...]:
    """The levels of a layer with their costs, the one that keeps least first."""
    options = [Option(v, layer.bytes_per_token(v), layer.flops_per_token(v)) for v in layer.levels]
    return tuple(sorted(options, key=lambda option: (option.bytes, -option.flops)))


def whole_of(layers: Sequence[Sequence[Option]]) -> list[int]:
    """Bytes per token of each layer with everything kept."""
    return [max(option.bytes for option in options) for options in layers]


def peak_per_token(chosen: Sequence[Option], whole: Sequence[int]) -> int:
    """Most bytes per token that the layers hold at once; `whole` are those of each with everything kept.

    In its own backward pass every layer has all its activations, kept or made again, on top of those below it.
    """
    peak = below = 0
    for option, all_of_it in zip(chosen, whole, strict=True):
        peak = max(peak, below + all_of_it)
        below += option.bytes
    return peak


def need_of(chosen: Sequence[Option], whole: Sequence[int], tokens: int, budget: Budget) -> int:
    """Bytes that a micro-batch of this many tokens takes."""
    correction = budget.correction
    per_token = correction.scale * peak_per_token(chosen, whole) + correction.extra
    return round(budget.fixed + tokens * per_token)


def choose(layers: Sequence[Sequence[Option]], tokens: int, budget: Budget, *, offload: bool = False) -> Plan:
    """The plan that keeps most within the budget; the one that keeps least where nothing fits.

    Args:
        layers: for each layer, from first to last, its options as `options_of` sorts them.
        tokens: the largest micro-batch to prepare for.
        offload: whether inputs may go to the host's RAM. It is done only if recomputing alone does not fit.
    """
    ladders = [_ladder(options, offload) for options in layers]
    whole = whole_of(layers)
    chosen = [ladder[0] for ladder in ladders]
    need = need_of(chosen, whole, tokens, budget)
    for index, option in _raises(ladders):
        higher = [*chosen]
        higher[index] = option
        more = need_of(higher, whole, tokens, budget)
        if more > budget.bytes:
            break
        chosen, need = higher, more
    return Plan(tuple(option.level for option in chosen), tokens, need, budget.bytes)


def uniform(layers: Sequence[Sequence[Option]], level: Level, tokens: int, budget: Budget) -> Plan:
    """The plan with one level for every layer, whether it fits or not; KEEP_INPUT where a layer does not know it."""
    chosen = []
    for options in layers:
        by_level = {option.level: option for option in options}
        chosen.append(by_level.get(level) or by_level[Level.KEEP_INPUT])
    need = need_of(chosen, whole_of(layers), tokens, budget)
    return Plan(tuple(option.level for option in chosen), tokens, need, budget.bytes)


def corrected(
    layers: Sequence[Sequence[Option]], plan: Plan, tokens: int, measured: int, exact: bool, budget: Budget
) -> Correction:
    """What a micro-batch of `tokens` under `plan`, seen to take `measured` bytes, says about the formula.

    What was missing is added per token: it comes from the layer in flight, whatever the others keep. What was too
    much scales what the layers keep, down to half. `exact` is False where the true need may be below `measured`.
    """
    chosen = [
        next(option for option in options if option.level is level)
        for options, level in zip(layers, plan.levels, strict=True)
    ]
    peak = peak_per_token(chosen, whole_of(layers))
    seen = max(0, measured - budget.fixed) / max(1, tokens)
    found = Correction(extra=seen - peak) if seen >= peak else Correction(scale=max(0.5, seen / peak))
    if exact:
        return found
    now = budget.correction  # only an upper bound: it may relax what is assumed, never tighten it
    return replace(now, scale=min(now.scale, found.scale), extra=min(now.extra, found.extra))


def _ladder(options: Sequence[Option], offload: bool) -> list[Option]:
    """The options worth taking, from least memory up, each step saving fewer FLOPs per byte than the one before.

    An offloaded input stays the first step, whatever it saves: it is the last resort.
    """
    resort = [option for option in options if option.level is Level.OFFLOAD_INPUT] if offload else []
    ladder: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.flops)):
        if option.level is Level.OFFLOAD_INPUT or (ladder and option.flops >= ladder[-1].flops):
            continue
        while len(ladder) > 1 and _saving(ladder[-1], option) >= _saving(ladder[-2], ladder[-1]):
            ladder.pop()
        ladder.append(option)
    return resort + ladder


def _saving(lower: Option, higher: Option) -> float:
    """FLOPs saved for each byte more."""
    more = higher.bytes - lower.bytes
    return (lower.flops - higher.flops) / more if more else float("inf")


def _raises(ladders: Sequence[Sequence[Option]]) -> list[tuple[int, Option]]:
    """All steps up the ladders in the order in which they are taken: (layer, its new option)."""
    steps = []
    for index, ladder in enumerate(ladders):
        for lower, higher in pairwise(ladder):
            last_resort = lower.level is Level.OFFLOAD_INPUT
            steps.append(((not last_resort, -_saving(lower, higher), -index), index, higher))
    return [(index, option) for _, index, option in sorted(steps, key=lambda step: step[0])]

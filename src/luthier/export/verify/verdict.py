"""The verdict on one artefact: what was compared, how far apart it is, and what of that is too far."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.export.verify.bounds import AS_DECODED, Bounds, bounds_of, faults
from luthier.export.verify.compare import Distance, Said, ask, distance
from luthier.export.verify.engine import Engine
from luthier.export.verify.engines._torch import TorchModel
from luthier.export.verify.explain import WITHOUT, OwnRounding, PlainEngine, own_rounding
from luthier.export.verify.prompts import Prompts


@dataclass(frozen=True)
class Trained:
    """What the trained model said, kept after it was freed."""

    said: Sequence[Said]
    prompts: Prompts
    config: Any
    """transformers' configuration of the model."""
    most: int
    """Tokens of the longest answer."""
    ends: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its answer."""
        return max(len(one.prompt.ids) for one in self.said) + self.most + 1


@dataclass(frozen=True)
class Verdict:
    """What is printed, and written to the run's folder."""

    form: str
    artefact: str
    size: int
    """Bytes on disk."""
    engine: str
    caveat: str
    source: str
    """Where the prompts come from."""
    note: str
    found: Distance
    bounds: Bounds
    faults: list[str] = field(default_factory=list)
    decoded: Distance | None = None
    """How far the engine lies from the decoded file, where it has few bits."""
    rounding: OwnRounding | None = None
    """What the engine's own rounding adds, where that alone is more than the bounds allow."""

    @property
    def same(self) -> bool:
        """Whether it is the trained model, within the bounds of its form."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """For the run's folder."""
        return {"verdict": "same" if self.same else "different", **asdict(self)}


def trained_by(model: TorchModel, config: Any, prompts: Prompts, most: int, ends: Sequence[int]) -> Trained:
    """Asks the trained model."""
    return Trained(ask(model, prompts.prompts, most, ends), prompts, config, most, tuple(ends))


def judge(
    trained: Trained,
    artefact: Path,
    form: str,
    load: Callable[[], Engine],
    decoded: Callable[[], Engine] | None = None,
    plain: Callable[[], PlainEngine] | None = None,
) -> Verdict:
    """Loads the artefact and compares it with the trained model.

    Args:
        form: what `bounds_of` takes.
        load: gives the artefact in the engine.
        decoded: gives it decoded and computed plainly, for forms in 8 bits and less.
        plain: gives it in the engine without its own rounding, which is asked if the engine is too far off.
    """
    bounds = bounds_of(form)
    by_file = _logits(trained, decoded) if decoded is not None and bounds.mean_kl is None else []
    with load() as engine:
        found = distance(trained.said, engine, trained.most, trained.ends)
        wrong = [*engine.faults(), *faults(found, Bounds(lost=bounds.lost))]
        own = distance(_said(trained, by_file), engine, 0, ()) if by_file else None
        name, caveat = engine.name, engine.caveat
    far = [one for one in faults(found, bounds) if one not in wrong]
    if own is not None:
        beyond = faults(replace(own, same_ids=own.prompts, same_prompt=None), AS_DECODED)
        far += [f"against the decoded file, {one}" for one in beyond]
    rounding = None
    if far and not wrong and decoded is not None and plain is not None and not bounds.same_text:
        by_file = by_file or _logits(trained, decoded)
        why = own_rounding(trained.said, found, form, far, by_file, plain)
        rounding = why if isinstance(why, OwnRounding) else None
        far = [*far, f"it is not the engine's own rounding: {why}"] if isinstance(why, str) else []
    return Verdict(
        form=form,
        artefact=str(artefact),
        size=size_of(artefact),
        engine=name,
        caveat=caveat,
        source=trained.prompts.source,
        note=trained.prompts.note,
        found=found,
        bounds=bounds,
        faults=[*wrong, *far],
        decoded=own,
        rounding=rounding,
    )


def _logits(trained: Trained, load: Callable[[], Engine]) -> list[Tensor]:
    """What another engine gives where the trained model spoke."""
    with load() as engine:
        return [engine.logits(one.fed, len(one.logits_TV)) for one in trained.said]


def _said(trained: Trained, logits: Sequence[Tensor]) -> list[Said]:
    return [replace(one, logits_TV=other) for one, other in zip(trained.said, logits, strict=True)]


def size_of(artefact: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if artefact.is_file():
        return artefact.stat().st_size
    return sum(one.stat().st_size for one in artefact.rglob("*") if one.is_file())


def table(verdict: Verdict) -> str:
    """The verdict for people, a line for each thing that was compared."""
    found, bounds = verdict.found, verdict.bounds
    lines = [
        ("compared in", verdict.engine),
        ("asked", f"{found.prompts} prompts from {verdict.source}; {found.places} places"),
        ("tokens of prompts", f"{found.same_ids} of {found.prompts} the same"),
    ]
    if found.same_prompt is not None:
        lines.append(("text by its template", f"{found.same_prompt} of {found.conversations} the same"))
    lines += [
        ("mean KL", f"{found.mean_kl:.2g} nats{_most(bounds.mean_kl)}; the largest {found.largest_kl:.2g}"),
        (
            "likeliest token",
            f"{found.top1:.2%} the same, {found.clear_agreed} of {found.clear} where the choice is clear"
            + (f" (about {bounds.clear_top1:.1%})" if bounds.clear_top1 is not None else ""),
        ),
        ("logits", f"differ by at most {found.largest_difference:.2g}, {found.spread:.2g} of their spread"),
        ("greedy answers", _answers(found)),
    ]
    if verdict.decoded is not None:
        lines.append(
            ("engine to its file", f"mean KL {verdict.decoded.mean_kl:.2g} nats{_most(AS_DECODED.mean_kl)}")
        )
    if (rounding := verdict.rounding) is not None:
        lines += [
            ("file by itself", f"mean KL {rounding.decoded.mean_kl:.2g} nats{_most(bounds.mean_kl)}"),
            (
                "engine's rounding",
                f"is why each of {rounding.products} products is off, and adds {rounding.adds:.2g} nats; without it "
                f"the engine is {rounding.without.mean_kl:.2g} nats from the file{_most(WITHOUT.mean_kl)}",
            ),
        ]
    width = max(len(name) for name, _ in lines)
    shown = [f"  {name:<{width}}  {text}" for name, text in lines]
    verb = "is the model that was trained" if verdict.same else "is NOT the model that was trained"
    few = verdict.same and bounds.mean_kl is None
    verb = "is the model that was trained, as far as so few bits can hold it" if few else verb
    if rounding is not None:
        verb += (
            f", but llama.cpp's own 8-bit products add {rounding.adds:.2g} nats here: {'; '.join(rounding.beyond)}. "
            "gguf:f16 does without"
        )
    ends = [f"Verdict: {verdict.artefact} {verb}.", *(f"  - {fault}" for fault in verdict.faults)]
    if not verdict.same and found.first_difference:
        ends.append(f"  The first difference: {found.first_difference}")
    return "\n".join([*shown, *ends, *filter(None, (verdict.note, verdict.caveat))])


def _most(bound: float | None) -> str:
    return f" (at most {bound:g})" if bound is not None else ""


def _answers(found: Distance) -> str:
    rest = f"; {found.ties} part where the choice is not clear" if found.ties else ""
    mean = found.answer_tokens / found.prompts
    return f"{found.same_text} of {found.prompts} the same, of {mean:.0f} tokens{rest}"

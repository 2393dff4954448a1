"""What `luthier data inspect` finds, put together for the terminal and the page."""

import json
from typing import TYPE_CHECKING, Any

from luthier.runs.data_view import DataView, Histogram, ShownRow, ShownToken

if TYPE_CHECKING:
    from luthier.cli._data_plan import Look
    from luthier.data.notes import Notes
    from luthier.data.pipeline import PreparedRow
    from luthier.data.summary import Summary

_MOST_TOKENS = 4000
_MOST_RECORD = 20_000
_MARKS = (("50 %", 50), ("90 %", 90), ("99 %", 99))


def view_of(look: "Look", summary: "Summary", notes: "Notes", first: int | None) -> DataView:
    """Everything that was found, in words and plain values."""
    from luthier.data.advice import advice

    config, lengths = look.config, summary.lengths
    wanted = look.plan.sets
    facts = [f"{summary.ledger.read:,} rows"] + ([f"the first {first:,} only"] if first else [])
    if look.tokenizer is not None:
        facts.append(f"tokens of {config.model.name}")
    histogram = None
    if lengths is not None:
        edges, counts = lengths.bins()
        histogram = Histogram(
            edges, counts, config.max_length, [(name, lengths.percentile(share)) for name, share in _MARKS]
        )
    return DataView(
        title=", ".join(one.path for one in wanted[:3])
        + (f" and {len(wanted) - 3} more" if len(wanted) > 3 else ""),
        facts=facts,
        ledger=summary.ledger.to_json(),
        formats=[(file, _counted(counts)) for file, counts in notes.formats.items()],
        sets=[(name, own.to_json()) for name, own in zip(summary.sets, summary.by_set, strict=True)],
        tiles=_tiles(look, summary),
        histogram=histogram,
        template=_template(look, summary),
        notes=[*look.notes, *notes.lines(), *(f"{where}: {found}" for where, found in summary.duplicates)],
        advice=advice(
            summary,
            max_length=config.max_length,
            capacity=config.train.micro_tokens,
            max_drop_fraction=config.data.max_drop_fraction,
            overlong=config.data.overlong,
            cleans_duplicates=config.data.clean.exact_duplicates,
        ),
        rows=[_shown(look, one) for one in summary.samples],
    )


def _counted(counts: Any) -> str:
    return ", ".join(f"{name} {count:,}" if len(counts) > 1 else name for name, count in counts.most_common())


def _tiles(look: "Look", summary: "Summary") -> list[tuple[str, str]]:
    ledger, lengths = summary.ledger, summary.lengths
    tiles = [("rows that can be used", f"{ledger.usable:,} of {ledger.read:,}")]
    if lengths is not None:
        tiles.append(("tokens", f"{summary.num_tokens:,}"))
        tiles.append(("learned", f"{summary.learned_share:.1%}"))
        for name, share in (("half of the rows", 50), ("90 % of the rows", 90), ("99 % of the rows", 99)):
            tiles.append((name, f"up to {lengths.percentile(share):,}"))
        tiles.append(("longest row", f"{lengths.longest:,}"))
    if (packed := summary.packed(look.config.train.micro_tokens)) is not None:
        tiles.append((f"micro-batches of {packed.capacity:,}", f"{packed.micro_batches:,}"))
        tiles.append(("packing", f"{packed.fill:.1%} full"))
    if summary.find_duplicates:
        tiles.append(("duplicates", f"{summary.num_duplicates:,}"))
    return tiles


def _template(look: "Look", summary: "Summary") -> list[tuple[str, str]]:
    """What the chat template does that decides what is learned."""
    template = look.template
    if template is None or look.tokenizer is None or not summary.kinds.keys() - {"text", "tokens", "pieces"}:
        return []
    from luthier.training.template import template_notes

    facts = [("an answer is asked for with", repr(template.generation_prompt))]
    ends = (
        "yes, so when to stop is learned" if template.closes_turns else "no, so when to stop is not learned"
    )
    facts.append(("answers end with a token of their own", ends))
    switches = template.thinking_switches(True)
    facts.append(("thinking is switched by", ", ".join(switches) or "nothing"))
    encoder = look.plan.recipe.encoder() if look.plan.recipe is not None else None
    first = next((one for one in summary.samples if one.encoded is not None), None)
    notes = list(encoder.notes) if encoder is not None else []
    if first is not None and first.examples:
        notes += template_notes(template, first.examples[0], look.tokenizer)
    return facts + [("note", note.removeprefix("note: ")) for note in dict.fromkeys(notes)]


def _shown(look: "Look", one: "PreparedRow") -> ShownRow:
    from luthier.data.shown import outline

    status = "set aside" if one.set_aside else one.status
    record = json.dumps(one.row.record, ensure_ascii=False, indent=1, default=str) if one.row.record else ""
    sequences, cut = _sequences(look, one)
    return ShownRow(
        where=one.row.where,
        number=one.row.number,
        status=status,
        note=one.reason,
        sequences=sequences,
        parts=outline(one.content) if one.content is not None and not sequences else (),
        cut=cut,
        record=record if len(record) <= _MOST_RECORD else record[:_MOST_RECORD] + " ...",
    )


def _sequences(look: "Look", one: "PreparedRow") -> tuple[list[tuple[str, list[ShownToken]]], int]:
    from luthier.data.draft import sequences
    from luthier.data.shown import token_pieces

    if one.encoded is None or look.tokenizer is None:
        return [], 0
    backend: Any = look.tokenizer.backend_tokenizer
    found: list[tuple[str, list[ShownToken]]] = []
    cut = 0
    for number, example in enumerate(one.encoded.examples, start=1):
        own = sequences(example)
        for index, (ids, weights) in enumerate(own):
            pieces = token_pieces(backend, ids, weights, _MOST_TOKENS)
            cut += max(0, len(ids) - _MOST_TOKENS)
            names = [f"part {number}"] if len(one.encoded.examples) > 1 else []
            names += [_answer_name(one, index, len(own))] if len(own) > 1 else []
            tokens = [ShownToken(piece.text, piece.ids, piece.weight) for piece in pieces]
            found.append((", ".join(names), tokens))
    return found, cut


def _answer_name(one: "PreparedRow", index: int, count: int) -> str:
    judged = getattr(one.content, "judged", "")
    if judged == "pair" and count == 2:
        return ("chosen", "rejected")[index]
    return f"answer {index + 1}"

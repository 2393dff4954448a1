"""The section `data`: which rows are learned from, and what becomes of each."""

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from luthier.config.forms import OneOrMany, Shorthand
from luthier.config.problems import Problem, impossible
from luthier.config.section import Fraction, Paths, Positive, Section, Text

Role = Literal["assistant", "user", "system", "developer", "tool"]


def _a_day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError("must be a day such as 2026-01-31") from None


class SetSection(Section):
    """One data set with options of its own. In a list, `- PATH` is short for `- {path: PATH}`."""

    path: Text
    """What `data.path` may name."""

    split: Text | None = None
    """Split, or a part of one (`train[:80%]`), of a hub set or of a folder whose names tell splits. Absent: `train`."""

    subset: Text | None = None
    """Subset (configuration) of a hub set that has several."""

    format: Text | None = None
    """A file of `data/formats/`, such as `sharegpt`. Absent: seen from the columns."""

    columns: dict[str, Text] = Field(default_factory=dict)
    """Names that the format's columns have in this set: `{messages: dialog}`. `-`: the column is not read."""

    tags: dict[str, Text] = Field(default_factory=dict)
    """Names used inside messages: `role`, `content`, `reasoning`, `tool_calls`, `train`, `weight` for their
    fields; `user`, `assistant`, `system`, `developer`, `tool`, `tool_call` for their roles, several with commas."""

    rows: Positive | None = None
    """Use so many rows only, drawn with the run's seed."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share in an interleaved mix, before `temperature`."""

    repeat: Annotated[float, Field(gt=0)] = 1.0
    """How often each row comes in an epoch; 0.5 takes half of the rows, others each epoch."""


class CleanSection(Section):
    """Rows that are left out on purpose. Each has its reason in the ledger; none counts as a fault."""

    exact_duplicates: bool = False
    """Leave out rows that say the same as an earlier one."""

    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Leave out rows at least this similar to an earlier one (Jaccard similarity of word 5-grams, MinHash)."""

    eval_overlap: Positive | None = None
    """Leave out rows that have this many words in a row in common with a held-out row."""

    min_characters: Positive | None = None
    """Leave out rows with less text."""

    max_characters: Positive | None = None
    """Leave out rows with more text."""

    languages: Annotated[list[Text], OneOrMany()] = Field(default_factory=list)
    """Keep rows in these languages only (ISO 639-1 codes such as `en`). Empty: all."""


class DataSection(Section):
    """What it is learned from. `data: PATH` is short for `data: {path: PATH}`."""

    path: Annotated[Paths | None, OneOrMany()] = None
    """A file (`.jsonl`, `.json`, `.csv`, `.parquet`, `.arrow`, `.txt`, also `.gz`, `.zst`), a folder, a pattern
    (`data/*.jsonl`), a hub set (`hf:org/name`), a URL (`s3://…`), or a list of these."""

    sets: list[Annotated[SetSection, Shorthand("path")]] = Field(default_factory=list)
    """Instead of `path`: data sets with options of their own."""

    mix: Literal["concat", "first_exhausted", "all_exhausted"] = "concat"
    """`concat`: every row of every set once an epoch. The others interleave the sets by their weights, until the
    first one is used up, or until all are and the shorter ones were repeated."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """An interleaved mix takes sets in proportion to (weight x rows) ** (1 / temperature)."""

    eval_path: Annotated[Paths | None, OneOrMany()] = None
    """Held-out rows for the evaluation loss, read like `path`."""

    eval_rows: Annotated[int, Field(ge=0)] = 0
    """How many rows to hold out when there is no `eval_path`: those with the smallest hash of their content."""

    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the rows to hold out, by the hash of their content: a row stays where it is when others come."""

    max_length: Positive | None = None
    """Longest row in tokens. Absent: `train.tokens_per_micro_batch`."""

    overlong: Literal["drop", "truncate_oldest_turns", "truncate_response", "split", "error"] | None = None
    """What to do with a longer row. Headers and ends of turns are never cut. Absent: `split` plain text, `drop`
    anything else."""

    max_drop_fraction: Fraction = 0.01
    """The run stops if more than this share of the rows cannot be used."""

    learn: Literal["answers", "last", "all"] | list[Role] = "answers"
    """What is learned: all `answers` of the assistant, the `last` of them, `all` tokens, or the turns of the
    roles in a list. A message's own `train` or `weight` can only take away."""

    thinking: bool | None = None
    """Tells the template to write answers with (`true`) or without (`false`) thinking; a row's own
    `chat_template_kwargs` win. Absent: the template's default."""

    template: Text | None = None
    """A Jinja file to use instead of the model's own chat template."""

    template_args: dict[str, Any] = Field(default_factory=dict)
    """Extra variables for the chat template, such as `enable_thinking: false`."""

    date: Annotated[str, AfterValidator(_a_day)] | None = None
    """The day (`2026-01-31`) that templates with a clock are told. Absent: the day the run began, kept in its config,
    so that a resumed run learns from the same tokens."""

    clean: CleanSection = CleanSection()
    """What is left out on purpose."""

    document_mask: bool = True
    """Each row sees only itself. false: rows are joined, in the order of reading, into blocks of `max_length` in which
    each token sees all before it, as pre-training is often done; for plain text and other rows with one sequence."""

    share_prefixes: bool = True
    """Compute what rows of a micro-batch begin with in common (a system prompt, tools) once, and the prompt of several
    answers where that is predicted to pay. Gradients are the same."""

    streaming: bool | None = None
    """Start training while later rows are still read; memory does not grow with the data. Absent: for local
    files of more than 200 MB and for hub sets that are not in the cache."""

    window_rows: Positive = 16384
    """Streaming only: rows that are shuffled and packed together."""

    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that tokenise. Absent: one a core for large data, none for small."""

    cache: bool = True
    """Keep the tokens on disk for the next run over the same rows with the same model. false: those of a stream lie in
    the run's folder while they are used."""

    @property
    def all_sets(self) -> tuple[SetSection, ...]:
        """The data sets, however they were written."""
        return (*(SetSection(path=path) for path in self.path or []), *self.sets)

    @property
    def eval_sets(self) -> tuple[SetSection, ...]:
        """The held-out sets of `eval_path`."""
        return tuple(SetSection(path=path) for path in self.eval_path or [])

    @property
    def holds_out(self) -> bool:
        """Whether some rows are held out."""
        return bool(self.eval_path or self.eval_rows or self.eval_fraction)

    @model_validator(mode="after")
    def _rows_come_from_somewhere(self) -> Self:
        if bool(self.path) == bool(self.sets):
            given = "both given; keep one of them" if self.path else "both absent; give one of them"
            raise impossible(Problem("data.path", f"data.path and data.sets are {given}"))
        return self

    @model_validator(mode="after")
    def _one_source_of_held_out_rows(self) -> Self:
        given = [name for name in ("eval_path", "eval_rows", "eval_fraction") if getattr(self, name)]
        if len(given) > 1:
            text = f"data.{given[0]} and data.{given[1]} are both given; keep one of them"
            raise impossible(Problem(f"data.{given[1]}", text))
        return self

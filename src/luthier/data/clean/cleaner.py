"""Applies the section `data.clean` to rows, one after the other."""

from collections.abc import Iterable, Sequence

from luthier.config.data_section import CleanSection
from luthier.data.clean.exact import ExactDuplicates
from luthier.data.clean.language import LanguageFilter
from luthier.data.clean.near import NearDuplicates
from luthier.data.clean.overlap import EvalOverlap
from luthier.data.clean.said import said
from luthier.data.clean.state import from_bytes, joined, to_bytes
from luthier.data.content import Content, TokenIds
from luthier.errors import ConfigError

_VERSION = 2  # of the rules; to be raised when the same rows would be judged in another way


class Cleaner:
    """Decides for each row, in order, whether it is left out on purpose.

    Of rows that are duplicates the first one wins; a row that comes again on purpose (`repeat`) is none.
    What is decided depends on the rows and their order alone.

    Args:
        options: what is asked for.
        eval_texts: what the held-out rows say (`said`), for `eval_overlap`; read only if that is asked for.

    Raises:
        ConfigError: if a library is missing, a language is not known, or no held-out rows are there to compare
            with.
    """

    def __init__(self, options: CleanSection, eval_texts: Iterable[str] | None = None):
        self.options = options
        self._exact = ExactDuplicates() if options.exact_duplicates else None
        self._near = NearDuplicates(options.near_duplicates) if options.near_duplicates is not None else None
        self._languages = LanguageFilter(options.languages) if options.languages else None
        self._overlap: EvalOverlap | None = None
        if options.eval_overlap is not None:
            if eval_texts is None:
                raise ConfigError(
                    "data.clean.eval_overlap compares with held-out rows, and there are none; "
                    "give data.eval_path, data.eval_rows or data.eval_fraction, or remove it"
                )
            self._overlap = EvalOverlap(options.eval_overlap, eval_texts)

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return self.options != CleanSection()

    def check(self, content: Content, key: str) -> str | None:
        """Why this row is left out, or None if it is kept; `key` is its `file:line`.

        A row that is left out is not remembered, so later rows are not compared with it.
        """
        reason = self._length(content)
        if reason is None and self._languages is not None:
            reason = self._languages.check(content)
        if reason is None and self._overlap is not None:
            reason = self._overlap.check(content)
        if reason is None and self._exact is not None:
            reason = self._exact.check(content, key)
        if reason is None and self._near is not None:
            reason = self._near.check(content, key)
        return reason

    @property
    def notes(self) -> list[str]:
        """What a person should be told in the end."""
        return [
            f"data.clean.{name} compared each row with the latest {part.limit:,} different ones at least; "
            "earlier ones were forgotten, to bound the memory"
            for name, part in (("exact_duplicates", self._exact), ("near_duplicates", self._near))
            if part is not None and part.forgot
        ]

    @property
    def key(self) -> str:
        """Everything that changes its decisions, besides the rows and the held-out texts."""
        return f"{_VERSION} {self.options.model_dump_json()}"

    def news(self) -> bytes:
        """What is to be remembered of the rows since the last call, or since the beginning."""
        return to_bytes({name: part.news() for name, part in self._memories().items()})

    def restore(self, parts: Sequence[bytes]) -> None:
        """Goes on behind these news, which are all there are, of a cleaner with the same options."""
        states, own = from_bytes(joined(reversed(parts))), self._memories()
        assert states.keys() == own.keys(), "the state is from a cleaner with the same options"
        for name, part in own.items():
            part.restore(states[name])

    def _memories(self) -> dict[str, ExactDuplicates | NearDuplicates]:
        parts = {"exact": self._exact, "near": self._near}
        return {name: part for name, part in parts.items() if part is not None}

    def _length(self, content: Content) -> str | None:
        low, high = self.options.min_characters, self.options.max_characters
        if isinstance(content, TokenIds) or (low is None and high is None):
            return None
        size = len(said(content))
        if low is not None and size < low:
            return f"the row has {size} characters, less than the {low} of data.clean.min_characters"
        if high is not None and size > high:
            return f"the row has {size} characters, more than the {high} of data.clean.max_characters"
        return None

"""Rows in languages that are not wanted, told apart by py3langid: offline, 140 languages, 4.6 MB."""

import difflib
from collections.abc import Sequence
from typing import Any

from luthier.data.clean.extra import need
from luthier.data.clean.said import said
from luthier.data.content import Content
from luthier.errors import ConfigError

_CERTAIN = 0.8
_CHARACTERS = 4000  # of a long row so much is looked at; it takes about 0.4 ms for a thousand


class LanguageFilter:
    """Keeps rows in some languages. What cannot be told (very short texts, formulas, code) is kept.

    Raises:
        ConfigError: if py3langid is not installed, or does not know a language.
    """

    def __init__(self, languages: Sequence[str]):
        module: Any = need("py3langid.langid", "data.clean.languages")
        self._identifier = module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)
        known = sorted(set(self._identifier.labels))
        self.languages = tuple(languages)
        self._too_unlikely = 0.5 * len(languages) / len(known)
        for number, language in enumerate(languages):
            if language not in known:
                near = difflib.get_close_matches(language.lower(), known, 1)
                codes = ", ".join(code for code in known if len(code) == 2)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {codes} and others"
                raise ConfigError(
                    f"data.clean.languages[{number}]: the language {language} is not known{hint}"
                )

    def check(self, content: Content) -> str | None:
        """Why this row is left out; None if it may be in one of the languages.

        It is left out if another language is certain, or the wanted ones are half as likely as if nothing were
        known.
        """
        text = said(content)[:_CHARACTERS]
        if not text.strip():
            return None
        likely = dict(self._identifier.rank(text))
        best = max(likely, key=lambda language: likely[language])
        wanted = sum(likely[language] for language in self.languages)
        if best in self.languages or (likely[best] < _CERTAIN and wanted >= self._too_unlikely):
            return None
        return (
            f"the row is in '{best}' ({likely[best]:.0%} sure), "
            f"not in one of data.clean.languages ({', '.join(self.languages)})"
        )

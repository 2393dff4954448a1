"""YAML that cannot be read, said in plain words with line and column."""

import yaml

_WORDS = (  # a part of PyYAML's message, and what it means to the person who wrote the file
    ("'\\t'", "there is a tab here; YAML is indented with spaces"),
    (
        "mapping values are not allowed",
        "this `:` does not belong here; check the indentation, or put the text in quotes",
    ),
    ("could not find expected ':'", "this key has no `:` behind it; write `key: value`"),
    ("unexpected end of stream", "a quote is opened and never closed"),
    ("expected <block end>", "this does not line up with the lines above; check the indentation"),
    ("expected ',' or ']'", "the list opened with `[` in line {opened} goes on without `,` or `]`"),
    ("expected ',' or '}'", "the section opened with `{{` in line {opened} goes on without `,` or `}}`"),
    ("found undefined alias", "this `*name` refers to no `&name` above it"),
    ("but found another document", "a second document starts here (`---`); one file holds one configuration"),
    ("cannot start any token", "text cannot start with this sign; put it in quotes"),
    (
        "unknown escape character",
        "this `\\` escape does not exist; use single quotes for text with backslashes",
    ),
    ("duplicate anchor", "this `&name` is used twice"),
)

_AT_THE_START = ("unexpected end of stream", "could not find expected ':'")
"""Where these begin says more than where the parser noticed them: an opening quote, a key."""


def explain(error: yaml.YAMLError, text: str, name: str) -> str:
    """What is wrong with the YAML, where, and the line itself."""
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1
        return _located(
            name, line, column, f"the character U+{_code(error.character):04X} is not allowed in YAML", ""
        )
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{name}: is not YAML: {error}" if name else f"is not YAML: {error}"
    problem = error.problem or error.context or ""
    mark = error.problem_mark
    if any(part in problem for part in _AT_THE_START) and error.context_mark is not None:
        mark = error.context_mark
    meaning = next((words for part, words in _WORDS if part in problem), f"this is not YAML: {problem}")
    if "{opened}" in meaning and error.context_mark is not None:
        meaning = meaning.format(opened=error.context_mark.line + 1)
    lines = text.splitlines()
    shown = lines[mark.line].strip() if mark.line < len(lines) else ""
    return _located(name, mark.line + 1, mark.column + 1, meaning, shown)


def not_text(content: bytes, error: UnicodeDecodeError, name: str) -> str:
    """Where a file stops being UTF-8."""
    line = content.count(b"\n", 0, error.start) + 1
    return f"{name}:{line}: byte 0x{content[error.start]:02X} is not UTF-8; save the file as UTF-8"


def _located(name: str, line: int, column: int, meaning: str, shown: str) -> str:
    place = f"{name}:{line}, column {column}: " if name else ""
    if not shown:
        return f"{place}{meaning}"
    return f"{place}{meaning}: {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _code(character: str | bytes | int) -> int:
    return character if isinstance(character, int) else ord(character)

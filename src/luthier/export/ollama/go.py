"""Runs the part of Go's template language that `go_template.py` writes, as Go's text/template does.

Text, `{{ value }}`, `{{ $x := value }}`, `{{ $x = value }}`, `if`, `else if`, `else`, `range` with or without names,
`end`; fields of the dot and of variables; texts, whole numbers, parentheses; the functions in `FUNCTIONS`. Marks that
trim white space are not part of it. A field that is absent is empty, as Ollama has it (`missingkey=zero`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ACTION = re.compile(r'\{\{((?:"(?:[^"\\]|\\.)*"|[^"])*?)\}\}', re.DOTALL)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|:=|[()=,]|[^\s()=,:"]+')


def to_json(value: Any) -> str:
    """As Go's json.Marshal writes it: no spaces, and < > & by their numbers."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda one, *others: one in others,
    "ne": lambda one, other: one != other,
    "gt": lambda one, other: one > other,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "not": lambda value: not value,
    "len": len,
    "slice": lambda values, start: values[start:],
    "json": to_json,
}


@dataclass
class _Block:
    """An `if` or `range`: its parts, each with what it depends on (None: else)."""

    kind: str
    parts: list[tuple[list[str] | None, list[Any]]] = field(default_factory=list)


class GoTemplate:
    """A template that can be run.

    Raises ValueError for what is not part of the language above.
    """

    def __init__(self, source: str):
        words = list(_split(source))
        self._nodes, rest = _nodes(words)
        if rest:
            raise ValueError(f"there is nothing to end at {rest[0]!r}")

    def run(self, values: Mapping[str, Any]) -> str:
        """The text that it writes for these values of the outermost dot."""
        return "".join(_run(self._nodes, values, [{"$": values}]))


def quoted(text: str) -> str:
    """A text in Go's language, for inside an action."""
    return json.dumps(text, ensure_ascii=False)


def _split(source: str) -> Iterator[str | list[str]]:
    """Texts, and the words of each action."""
    place = 0
    for match in ACTION.finditer(source):
        if match.start() > place:
            yield source[place : match.start()]
        yield WORD.findall(match[1])
        place = match.end()
    if "{{" in source[place:]:
        raise ValueError("an action has no end")
    if place < len(source):
        yield source[place:]


def _nodes(words: list[str | list[str]]) -> tuple[list[Any], list[Any]]:
    """The nodes up to the `else` or `end` that is not theirs, and what follows from there on."""
    found: list[Any] = []
    while words:
        word = words[0]
        if isinstance(word, list) and word[0] in ("else", "end"):
            return found, words
        words = words[1:]
        if isinstance(word, list) and word[0] in ("if", "range"):
            node, words = _block(word, words)
            found.append(node)
        else:
            found.append(word)
    return found, words


def _block(opening: list[str], words: list[Any]) -> tuple[_Block, list[Any]]:
    block, condition = _Block(opening[0]), opening[1:]
    while True:
        body, words = _nodes(words)
        block.parts.append((condition, body))
        if not words:
            raise ValueError(f"{block.kind} has no end")
        closing, words = words[0], words[1:]
        if closing[0] == "end":
            return block, words
        condition = closing[2:] if closing[1:2] == ["if"] else None


Scopes = list[dict[str, Any]]


def _run(nodes: list[Any], dot: Any, scopes: Scopes) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Block):
            yield from (_branch if node.kind == "if" else _loop)(node, dot, scopes)
        elif node[1:2] == [":="]:
            scopes[-1][node[0]] = _value(node[2:], dot, scopes)
        elif node[1:2] == ["="]:
            scope = next(one for one in reversed(scopes) if node[0] in one)
            scope[node[0]] = _value(node[2:], dot, scopes)
        else:
            yield _shown(_value(node, dot, scopes))


def _branch(block: _Block, dot: Any, scopes: Scopes) -> Iterator[str]:
    for condition, body in block.parts:
        if condition is None or _value(condition, dot, scopes):
            yield from _run(body, dot, [*scopes, {}])
            return


def _loop(block: _Block, dot: Any, scopes: Scopes) -> Iterator[str]:
    condition, body = block.parts[0]
    assert condition is not None
    names: Sequence[str] = ()
    if ":=" in condition:
        place = condition.index(":=")
        names, condition = [word for word in condition[:place] if word != ","], condition[place + 1 :]
    for number, value in enumerate(_value(condition, dot, scopes) or ()):
        numbered = dict(zip(names, (number, value) if len(names) == 2 else (value,), strict=False))
        yield from _run(body, value, [*scopes, numbered])


def _value(words: list[str], dot: Any, scopes: Scopes) -> Any:
    """Of a function with its arguments, or of one thing."""
    found, rest = _arguments(words, dot, scopes)
    if rest:
        raise ValueError(f"not understood: {' '.join(words)}")
    first, *others = found
    if callable(first):
        return first(*others)
    if others:
        raise ValueError(f"not a function: {' '.join(words)}")
    return first


def _arguments(words: list[str], dot: Any, scopes: Scopes) -> tuple[list[Any], list[str]]:
    found = []
    while words and words[0] != ")":
        word, words = words[0], words[1:]
        if word == "(":
            depth, end = 1, 0
            while depth:
                depth += {"(": 1, ")": -1}.get(words[end], 0)
                end += 1
            found.append(_value(words[: end - 1], dot, scopes))
            words = words[end:]
        else:
            found.append(_one(word, dot, scopes))
    return found, words


def _one(word: str, dot: Any, scopes: Scopes) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if re.fullmatch(r"-?\d+", word):
        return int(word)
    if word in FUNCTIONS:
        return FUNCTIONS[word]
    start, *path = word.split(".")
    if start == "":
        value = dot
    else:
        scope = next((one for one in reversed(scopes) if start in one), None)
        if scope is None:
            raise ValueError(f"not known: {word}")
        value = scope[start]
    for name in path:
        if name:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    """Texts as they are; what Ollama prints as JSON (tools, arguments), so."""
    if value is None:
        return ""
    return value if isinstance(value, str) else to_json(value)

"""Finds out which text a chat template writes for which message, by watching it run.

Every `for` loop of the template, and every `set` in its body, tells a recorder which values it looks at. While
such a value *is* one of the conversation's messages, what is written is that message's region. So the boundaries
come from the run of the template itself and not from comparing texts, which goes wrong as soon as a template
rewrites its history.

Text that goes straight to the output is measured as it comes, so watching changes nothing. Where a loop stands in
a macro or a captured block, the recorder writes invisible marks instead (private-use characters), which are taken
out again; then the text must be compared with one that was written without marks.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import Context

from luthier.data.conversation import Message
from luthier.errors import RowRefused

RECORDER = "luthier_recorder"
"""The variable of a template that holds the recorder."""
GENERATION = 0
"""The number that `{% generation %}` blocks have instead of a loop's."""

_OPEN, _CLOSE, _STOP = "\U000f0010", "\U000f0011", "\U000f0012"
_MARK = re.compile(f"{_OPEN}([0-9]+),([0-9]+){_STOP}|{_CLOSE}([0-9]+){_STOP}")
RESERVED = re.compile(f"[{_OPEN}-{_STOP}\ud800-\udfff]")
"""The characters of the marks, and half surrogates, which are no text; a row that contains one is refused."""
_CAPTURES = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock)


@dataclass(frozen=True)
class Region:
    """The part of a rendered text that was written while the template looked at one message."""

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class Marked:
    """A rendered text with the regions of its messages, in order."""

    text: str
    regions: tuple[Region, ...]
    generations: tuple[tuple[int, int], ...]
    """Spans of the template's own `{% generation %}` blocks, where it has them."""
    within: frozenset[tuple[int, int]] = frozenset()
    """Pairs of messages: the template looked at the second while it wrote the first."""

    def of(self, message: int) -> list[Region]:
        """The regions of a message that hold more than white space, or else the first that holds any."""
        return self._by_message.get(message, [])

    @cached_property
    def _by_message(self) -> dict[int, list[Region]]:
        result: dict[int, list[Region]] = {}
        for region in self.regions:
            if region.end > region.start:
                result.setdefault(region.message, []).append(region)
        for message, own in result.items():
            if len(own) > 1:
                visible = [one for one in own if not self.text[one.start : one.end].isspace()]
                result[message] = visible or own[:1]
        return result


class Captured(Exception):  # no error: it says that marks are needed
    """A message was met where the text is captured, so its place cannot be measured as it comes."""


class Recorder:
    """What is open while one conversation is rendered.

    A message inside another message's region opens nothing: the text is the outer one's.

    Args:
        messages: the conversation's, as the template is given them.
        marks: write marks into the text instead of measuring it.
    """

    def __init__(self, messages: Sequence[Message], marks: bool):
        self.number_of = {id(message): number for number, message in enumerate(messages)}
        self.marks = marks
        self.length = 0
        """Characters that went to the output so far; whoever renders keeps it up to date."""
        self.open: tuple[int, int, int] | None = None  # loop, message, start
        self.regions: list[Region] = []
        self.generations: list[tuple[int, int]] = []
        self.within: set[tuple[int, int]] = set()

    def start(self, value: Any, loop: int, captured: bool, *, again: bool) -> str:
        """Called with what a loop or a `set` in its body looks at; `again`: a new turn of the loop begins."""
        number = self.number_of.get(id(value))
        opened = self.open
        closing = ""
        if opened is not None:
            if opened[0] != loop:
                if number is not None:
                    self.within.add((opened[1], number))
                return ""
            if not again:
                return ""
            closing = self.close(loop)  # a `continue` skipped the end of the body
        if number is None:
            return closing
        if captured and not self.marks:
            raise Captured
        self.open = loop, number, self.length
        return f"{closing}{_OPEN}{loop},{number}{_STOP}" if self.marks else ""

    def close(self, loop: int) -> str:
        """Called at the end of a loop's body and after the loop."""
        opened = self.open
        if opened is None or opened[0] != loop:
            return ""
        self.open = None
        if self.marks:
            return f"{_CLOSE}{loop}{_STOP}"
        self.regions.append(Region(opened[1], opened[2], self.length))
        return ""

    def generation(self, text: str, captured: bool) -> str:
        """Called with the text of a `{% generation %}` block, which is written next."""
        if self.marks:
            return f"{_OPEN}{GENERATION},0{_STOP}{text}{_CLOSE}{GENERATION}{_STOP}"
        if captured:
            raise Captured
        self.generations.append((self.length, self.length + len(text)))
        return text

    def measured(self, text: str) -> Marked:
        """The result of a run without marks."""
        if self.open is not None or (not text.isascii() and RESERVED.search(text)):
            raise RowRefused("the template cuts the text of messages apart, so it cannot be marked")
        regions = tuple(sorted(self.regions, key=lambda region: (region.start, region.end)))
        return Marked(text, regions, tuple(self.generations), frozenset(self.within))

    def parsed(self, marked: str) -> Marked:
        """The result of a run with marks: takes them out of the text and turns them into regions."""
        pieces: list[str] = []
        regions: list[Region] = []
        generations: list[tuple[int, int]] = []
        stack: list[tuple[int, int, int]] = []  # loop, message, start
        length = last = 0
        for mark in _MARK.finditer(marked):
            pieces.append(marked[last : mark.start()])
            length += mark.start() - last
            last = mark.end()
            if mark[1] is not None:
                stack.append((int(mark[1]), int(mark[2]), length))
                continue
            loop, message, start = stack.pop() if stack else (-1, -1, -1)
            if loop != int(mark[3]):
                raise RowRefused("the template moves the text of messages around, so it cannot be marked")
            if loop == GENERATION:
                generations.append((start, length))
            else:
                regions.append(Region(message, start, length))
        text = "".join([*pieces, marked[last:]])
        if stack or RESERVED.search(text):
            raise RowRefused("the template cuts the text of messages apart, so it cannot be marked")
        ordered = tuple(sorted(regions, key=lambda region: (region.start, region.end)))
        return Marked(text, ordered, tuple(sorted(generations)), frozenset(self.within))


def _recorder(context: Context) -> Recorder | None:
    return context.parent.get(RECORDER)


@pass_context
def _start(context: Context, value: Any, loop: int, captured: bool) -> str:
    recorder = _recorder(context)
    return recorder.start(value, loop, captured, again=True) if recorder else ""


@pass_context
def _set(context: Context, value: Any, loop: int, captured: bool) -> str:
    recorder = _recorder(context)
    return recorder.start(value, loop, captured, again=False) if recorder else ""


@pass_context
def _close(context: Context, loop: int) -> str:
    recorder = _recorder(context)
    return recorder.close(loop) if recorder else ""


@pass_context
def _generation(context: Context, text: str, captured: bool) -> str:
    recorder = _recorder(context)
    return recorder.generation(text, captured) if recorder else text


FILTERS = {
    "luthier_start": _start,
    "luthier_set": _set,
    "luthier_close": _close,
    "luthier_generation": _generation,
}
"""What the watched program calls. Filters, not variables, so that no template can shadow them."""


def watch(tree: nodes.Template) -> None:
    """Makes a template's syntax tree tell the recorder what it looks at."""
    numbers = iter(range(GENERATION + 1, 1_000_000))
    _watch(tree, numbers, None, captured=False)


def _watch(node: nodes.Node, numbers: Iterator[int], loop: int | None, *, captured: bool) -> None:
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            _watch(value, numbers, None, captured=captured)
        if not isinstance(value, list):
            continue
        result: list[Any] = []
        for child in value:
            result += _watched(child, numbers, loop, captured) if isinstance(child, nodes.Node) else [child]
        setattr(node, name, result)


def _watched(child: nodes.Node, numbers: Iterator[int], loop: int | None, captured: bool) -> list[nodes.Node]:
    """The nodes that take the place of one."""
    if isinstance(child, nodes.For):
        return _watched_loop(child, numbers, captured)
    if isinstance(child, nodes.If):  # its branches belong to the same loop body
        _watch(child, numbers, loop, captured=captured)
        return [child]
    _watch(child, numbers, None, captured=captured or isinstance(child, _CAPTURES))
    if isinstance(child, nodes.FilterBlock) and child.filter.name == "luthier_generation":
        child.filter.args[0] = nodes.Const(captured)
    if loop is not None and isinstance(child, nodes.Assign) and isinstance(child.target, nodes.Name):
        return [child, _call("luthier_set", child.target.name, loop, captured, child)]
    return [child]


def _watched_loop(child: nodes.For, numbers: Iterator[int], captured: bool) -> list[nodes.Node]:
    """Calls at the start, at the end and after the loop; after it because `break` skips the end."""
    targets = [child.target, *child.target.find_all(nodes.Name)]
    names = dict.fromkeys(target.name for target in targets if isinstance(target, nodes.Name))
    if child.recursive or not names:
        _watch(child, numbers, None, captured=captured)
        return [child]
    number = next(numbers)
    _watch(child, numbers, number, captured=captured)
    first, *others = names
    starts = [_call("luthier_start", first, number, captured, child)]
    starts += [_call("luthier_set", name, number, captured, child) for name in others]
    end = [nodes.Const(number)]
    child.body = [*starts, *child.body, _filter("luthier_close", end[0], [], child)]
    return [child, _filter("luthier_close", nodes.Const(number), [], child)]


def _call(function: str, name: str, loop: int, captured: bool, near: nodes.Node) -> nodes.Node:
    return _filter(function, nodes.Name(name, "load"), [nodes.Const(loop), nodes.Const(captured)], near)


def _filter(function: str, value: nodes.Expr, arguments: list[nodes.Expr], near: nodes.Node) -> nodes.Node:
    call = nodes.Filter(value, function, arguments, [], None, None)
    output = nodes.Output([call]).set_lineno(near.lineno, override=True)
    assert near.environment is not None, "a parsed node has its environment"
    return output.set_environment(near.environment)

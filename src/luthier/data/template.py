"""A chat template as a program that says which text it wrote for which message.

Chat templates are Jinja. We build the environment that `apply_chat_template` builds, and a second version of
the program whose loops put invisible marks around the text of each message: the syntax tree of every `for`
loop gets a mark at the start and at the end of its body, and the mark is written only while the loop variable
*is* one of the conversation's messages. So the boundaries come from the run of the template itself and not
from comparing texts, which goes wrong as soon as a template rewrites its history.

The marks are private-use characters; without them the text is exactly what the plain template writes, and
every render checks that it is.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from luthier.data.conversation import Message
from luthier.errors import DataError, RowRefused

_OPEN, _CLOSE, _STOP = "\U000f0010", "\U000f0011", "\U000f0012"
_MARK = re.compile(f"{_OPEN}([0-9]+),([0-9]+){_STOP}|{_CLOSE}([0-9]+){_STOP}")
_RECORDER = "luthier_recorder"
_GENERATION = 0  # the number that `{% generation %}` blocks have instead of a loop's

RESERVED = re.compile(f"[{_OPEN}-{_STOP}\ud800-\udfff]")
"""The characters of the marks, and half surrogates, which are no text; a row that contains one is refused."""


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

    def of(self, message: int) -> list[Region]:
        """The regions of a message that hold more than white space, or else the first that holds any."""
        own = [region for region in self.regions if region.message == message and region.end > region.start]
        visible = [region for region in own if not self.text[region.start : region.end].isspace()]
        return visible or own[:1]


class TemplateProgram:
    """A compiled chat template that can also say where each message went.

    Raises:
        DataError: if the source is not valid Jinja.
    """

    def __init__(self, source: str):
        self.source = source
        environment = _environment(datetime.now())
        try:
            self._plain = environment.from_string(source)
            tree = environment.parse(source)
        except jinja2.TemplateSyntaxError as fault:
            raise DataError(
                f"the chat template is not valid Jinja: {fault.message} (line {fault.lineno}); "
                "correct it or give another file in data.template"
            ) from fault
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        """Names that the template reads and does not set itself."""
        _instrument(tree)
        self._marked = environment.from_string(tree)

    def render(self, messages: Sequence[Message], variables: dict[str, Any]) -> str:
        """The text of the conversation, as `apply_chat_template(tokenize=False)` writes it.

        Raises:
            RowRefused: if the template fails or refuses, with its own message.
        """
        return _run(self._plain, {**variables, "messages": list(messages)})

    def render_marked(
        self, messages: Sequence[Message], variables: dict[str, Any], check: bool = True
    ) -> Marked:
        """The text of the conversation with the region of each message.

        `check` renders once more without marks and compares, which costs about 0.1 ms.

        Raises:
            RowRefused: as `render`; and if the marks cannot be trusted.
        """
        values = {**variables, "messages": list(messages)}
        marked = _parse(_run(self._marked, {**values, _RECORDER: _Recorder(messages)}))
        if check and marked.text != _run(self._plain, values):
            raise RowRefused(
                "the template changes its output with the text around a message, so it cannot be marked"
            )
        return marked


class _Recorder:
    """What is open while one conversation is rendered."""

    def __init__(self, messages: Sequence[Message]):
        self.number_of = {id(message): number for number, message in enumerate(messages)}
        self.open: set[int] = set()

    def start(self, loop: int, *values: Any) -> str:
        closing = self.close(loop)  # a `continue` skipped the end of the body
        for value in values:
            number = self.number_of.get(id(value))
            if number is not None:
                self.open.add(loop)
                return f"{closing}{_OPEN}{loop},{number}{_STOP}"
        return closing

    def close(self, loop: int) -> str:
        if loop not in self.open:
            return ""
        self.open.remove(loop)
        return f"{_CLOSE}{loop}{_STOP}"


@jinja2.pass_context
def _start(context: Context, loop: int, *values: Any) -> str:
    recorder = context.resolve_or_missing(_RECORDER)
    return recorder.start(loop, *values) if isinstance(recorder, _Recorder) else ""


@jinja2.pass_context
def _close(context: Context, loop: int) -> str:
    recorder = context.resolve_or_missing(_RECORDER)
    return recorder.close(loop) if isinstance(recorder, _Recorder) else ""


def _instrument(tree: nodes.Template) -> None:
    """Puts marks at the start, the end and after every loop. After it because `break` skips the end."""
    numbers: dict[int, int] = {}
    for number, loop in enumerate(tree.find_all(nodes.For), start=_GENERATION + 1):
        names = [
            name.name
            for name in [loop.target, *loop.target.find_all(nodes.Name)]
            if isinstance(name, nodes.Name)
        ]
        if loop.recursive or not names:
            continue
        numbers[id(loop)] = number
        start = _mark("luthier_start", number, dict.fromkeys(names), loop)
        loop.body = [start, *loop.body, _mark("luthier_close", number, (), loop)]
    for node in [tree, *tree.find_all(nodes.Node)]:
        for name, children in node.iter_fields():
            if isinstance(children, list) and any(id(child) in numbers for child in children):
                setattr(node, name, [item for child in children for item in _with_end(child, numbers)])


def _with_end(child: Any, numbers: dict[int, int]) -> list[Any]:
    number = numbers.get(id(child))
    return [child] if number is None else [child, _mark("luthier_close", number, (), child)]


def _mark(function: str, loop: int, names: Any, near: nodes.For) -> nodes.Output:
    # An attribute of the environment, and not a variable, so that no template can shadow it.
    arguments: list[nodes.Expr] = [nodes.Const(loop), *(nodes.Name(name, "load") for name in names)]
    call = nodes.Call(nodes.EnvironmentAttribute(function), arguments, [], None, None)
    output = nodes.Output([call]).set_lineno(near.lineno, override=True)
    assert near.environment is not None, "a parsed node has its environment"
    output.set_environment(near.environment)
    return output  # type: ignore[return-value]  # set_lineno is typed as a plain Node


def _parse(marked: str) -> Marked:
    """Takes the marks out of a text and turns them into regions."""
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
        if loop == _GENERATION:
            generations.append((start, length))
        else:
            regions.append(Region(message, start, length))
    text = "".join([*pieces, marked[last:]])
    if stack or RESERVED.search(text):
        raise RowRefused("the template cuts the text of messages apart, so it cannot be marked")
    _refuse_nested(text, regions)
    return Marked(text, tuple(sorted(regions, key=lambda r: (r.start, r.end))), tuple(sorted(generations)))


def _refuse_nested(text: str, regions: Sequence[Region]) -> None:
    """Refuses a text in which one message's region lies in another's and both hold something."""
    visible = [r for r in regions if not text[r.start : r.end].isspace() and r.end > r.start]
    visible.sort(key=lambda r: (r.start, -r.end))
    for before, after in pairwise(visible):
        if after.start < before.end:
            raise RowRefused(
                f"the template writes message {after.message + 1} inside message {before.message + 1}, "
                "so their texts cannot be told apart"
            )


def _run(template: jinja2.Template, variables: dict[str, Any]) -> str:
    try:
        return template.render(**variables)
    except Exception as fault:  # a template is somebody else's program: whatever it raises is about this row
        reason = getattr(fault, "message", None) or f"{type(fault).__name__}: {fault}"
        raise RowRefused(f"the chat template refuses the conversation: {reason}") from fault


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`: writes its body, marked when somebody records."""

    tags = {"generation"}  # noqa: RUF012  # the name and form that Jinja asks for

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    @jinja2.pass_context
    def _write(self, context: Context, caller: Macro) -> str:
        if isinstance(context.resolve_or_missing(_RECORDER), _Recorder):
            return f"{_OPEN}{_GENERATION},0{_STOP}{caller()}{_CLOSE}{_GENERATION}{_STOP}"
        return caller()


class _Dict:
    """`dict(...)` in a template, without the attributes of Python's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace(...)` in a template, without a way to Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template cannot set {name!r} on a namespace")
        super().__setitem__(name, value)


def _refuse(message: str) -> str:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """What chat templates are written for. The clock stands still, so that all rows of a run see one date."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_refuse, strftime_now=now.strftime, dict=_Dict(), namespace=_Namespace
    )
    environment.extend(luthier_start=_start, luthier_close=_close)
    return environment

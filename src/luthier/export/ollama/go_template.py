"""A chat template's shape in Go's template language, as Ollama runs it."""

import re

from luthier.export.ollama.go import quoted
from luthier.export.ollama.shape import Calls, Opening, Part, Shape

CONDITIONS = {"both": "and $.System $.Tools", "system": "$.System", "tools": "$.Tools"}
TOOLS = {
    "list": "{{ json $.Tools }}",
    "tool": "{{ json . }}",
    "function": "{{ json .Function }}",
}


def go_template(shape: Shape) -> str:
    """The template. Ollama joins system messages into `.System` and fills the rest from the request.

    Thoughts and calls are written with fields of the dot, and calls before any other text of their `if`, because
    Ollama reads from the template by which words either begins.
    """
    own = any(parts != (shape.asked,) for _, parts in shape.question.cases())
    numbers = _numbers(shape) if own or shape.thinking else ""
    question = _text(shape.asked)
    if own:
        question = f"{{{{ if eq $i $at }}}}{_opening(shape.question)}{{{{ else }}}}{question}{{{{ end }}}}"
    calls = shape.calls
    result = "" if calls is None else '{{ else if eq .Role "tool" }}' + _result(calls)
    late = "" if calls is None else _late(calls, '(ne .Role "tool")')
    return (
        f"{numbers}{_opening(shape.start)}"
        '{{ $before := "" }}{{ range $i, $message := .Messages }}'
        f"{late}"
        f'{{{{ if eq .Role "user" }}}}{question}{{{{ .Content }}}}{_text(shape.question_after)}'
        f'{{{{ else if eq .Role "assistant" }}}}{_answer(shape)}'
        f"{result}{{{{ end }}}}{{{{ $before = .Role }}}}{{{{ end }}}}"
        f"{_late(calls, None) if calls else ''}"
        f'{{{{ if ne $before "assistant" }}}}{_text(shape.prompt)}{_off(shape)}{{{{ end }}}}'
    )


def _numbers(shape: Shape) -> str:
    """Where the question is that system message and tools stand at, and the last one."""
    found = "{{ $at := -1 }}{{ $last := -1 }}{{ range $i, $message := .Messages }}"
    inside = "{{ $last = $i }}"
    inside += "{{ if eq $at -1 }}{{ $at = $i }}{{ end }}" if shape.at == "first" else "{{ $at = $i }}"
    return f'{found}{{{{ if eq .Role "user" }}}}{inside}{{{{ end }}}}{{{{ end }}}}'


def _opening(opening: Opening) -> str:
    """The text for what there is: a system message, tools, both or nothing."""
    cases = dict(opening.cases())
    if len(set(cases.values())) == 1:
        return _parts(opening.plain)
    written = ""
    for name, parts in cases.items():
        if name == "plain":
            written += f"{{{{ else }}}}{_parts(parts)}"
        else:
            written += f"{{{{ {'else if' if written else 'if'} {CONDITIONS[name]} }}}}{_parts(parts)}"
    return f"{written}{{{{ end }}}}"


def _parts(parts: tuple[Part, ...]) -> str:
    return "".join(_text(part) if isinstance(part, str) else _hole(*part) for part in parts)


def _hole(kind: str, between: str) -> str:
    if kind == "system":
        return "{{ $.System }}"
    if kind == "list":
        return TOOLS["list"]
    separator = f"{{{{ if $n }}}}{_text(between)}{{{{ end }}}}"
    return f"{{{{ range $n, $tool := $.Tools }}}}{separator}{TOOLS[kind]}{{{{ end }}}}"


def _answer(shape: Shape) -> str:
    """One answer; the last one of all is left open, to be gone on with."""
    thoughts = ""
    if shape.thinking is not None:
        before, after = shape.thinking
        thoughts = f"{_text(before)}{{{{ .Thinking }}}}{_text(after)}"
        thoughts = f"{{{{ if and .Thinking (gt $i $last) }}}}{thoughts}{{{{ end }}}}"
    end = f"{{{{ if gt (len (slice $.Messages $i)) 1 }}}}{_text(shape.answer_after)}{{{{ end }}}}"
    said, calls = "{{ .Content }}", shape.calls
    if calls is not None:
        if calls.before is None:
            said = f"{{{{ $calls := .ToolCalls }}}}{{{{ if not $calls }}}}{said}{{{{ end }}}}"
        elif calls.before:
            both = "{{ $calls := .ToolCalls }}{{ if and .Content $calls }}"
            said += f"{both}{_text(calls.before)}{{{{ end }}}}"
        end = f"{{{{ if .ToolCalls }}}}{_calls(calls)}{{{{ else }}}}{end}{{{{ end }}}}"
    return f"{_text(shape.answer)}{thoughts}{said}{end}"


def _calls(calls: Calls) -> str:
    before, inner, after = (_text(piece) for piece in calls.pieces)
    between = ""
    if calls.between:
        between = f"{{{{ if gt (len (slice $message.ToolCalls $n)) 1 }}}}{_text(calls.between)}{{{{ end }}}}"
    return (
        "{{ range $n, $call := .ToolCalls }}"
        f"{before}{{{{ .Function.Name }}}}{inner}{{{{ .Function.Arguments }}}}{after}{between}{{{{ end }}}}"
    )


def _result(calls: Calls) -> str:
    first, following = _text(calls.result_first), _text(calls.result_next)
    content = "{{ json .Content }}" if calls.as_json else "{{ .Content }}"
    return f'{{{{ if eq $before "tool" }}}}{following}{{{{ else }}}}{first}{{{{ end }}}}{content}'


def _late(calls: Calls, also: str | None) -> str:
    """What ends results, written once it is known that no other follows."""
    if not calls.result_after:
        return ""
    was = 'eq $before "tool"'
    condition = was if also is None else f"and ({was}) {also}"
    return f"{{{{ if {condition} }}}}{_text(calls.result_after)}{{{{ end }}}}"


def _off(shape: Shape) -> str:
    if not shape.no_thinking:
        return ""
    return f"{{{{ if and $.IsThinkSet (not $.Think) }}}}{_text(shape.no_thinking)}{{{{ end }}}}"


def _text(text: str) -> str:
    """A text as it stands; braces that Go would take for an action are quoted inside one."""
    return re.sub(r"\{\{+", lambda match: f"{{{{ {quoted(match[0])} }}}}", text)

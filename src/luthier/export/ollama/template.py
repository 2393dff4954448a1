"""The template of a Modelfile, made from a model's own and tried against it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from luthier.data.template import TemplateProgram
from luthier.errors import DataError, ModelError, RowRefused
from luthier.export.ollama.go_template import go_template
from luthier.export.ollama.proof import difference
from luthier.export.ollama.shape import Render, Shape, Unlike, text_shape, with_thinking, with_tools

Step = Callable[[Render, Shape], Shape]


@dataclass(frozen=True)
class Made:
    """A template in Go's language."""

    source: str
    shape: Shape
    notes: tuple[str, ...]
    """What it cannot do that the model's own template does."""


def made_template(
    source: str,
    *,
    now: datetime,
    bos: str | None,
    adds_bos: bool,
    eos: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Made:
    """What Ollama needs to write the prompts that this Jinja template writes.

    Args:
        source: the model's chat template.
        now: the day that a template with a clock is told.
        bos: the text of the token that begins a prompt.
        adds_bos: whether the engine puts that token there by itself, so that the template must not.
        eos: the text of the token that ends an answer.
        variables: what else the template is told, as in training.

    Raises ModelError where no template in Go's language is found that writes the same.
    """
    try:
        cut = (bos or "") if adds_bos else ""
        told = {"bos_token": bos or "", "eos_token": eos or "", **(variables or {})}
        render = _renderer(source, now, told, cut)
        later = _renderer(source, now + timedelta(days=400), told, cut)
        shape = text_shape(render)
        wrong = difference(go_template(shape), shape, render)
    except (Unlike, RowRefused, DataError) as error:
        raise _refused(str(error)) from error
    if wrong is not None:
        raise _refused(wrong)
    notes = []
    if shape.start.system is None:
        notes.append(
            "The chat template has no place for system messages, so Ollama drops those that it is given."
        )
    for what, step in (("thoughts", with_thinking), ("tools", with_tools)):
        better, why = _tried(step, shape, render)
        if better is not None:
            shape = better
        elif _mentions(source, what):
            notes.append(f"The Modelfile knows no {what}, though the model's template does: {why}.")
    notes += _differences(render, later)
    return Made(go_template(shape), shape, tuple(notes))


def _tried(step: Step, shape: Shape, render: Render) -> tuple[Shape | None, str]:
    """The shape after this step if its template writes what the model's does, and why not otherwise."""
    try:
        better = step(render, shape)
        wrong = difference(go_template(better), better, render)
    except (Unlike, RowRefused) as error:
        return None, str(error)
    return (None, "Go's template would write other prompts") if wrong else (better, "")


def _mentions(source: str, what: str) -> bool:
    return any(
        word in source
        for word in (("tool_calls",) if what == "tools" else ("enable_thinking", "reasoning_content"))
    )


def _differences(render: Render, later: Render) -> list[str]:
    """What of the model's template is not looked for in conversations without white space around texts."""
    notes = []
    message = [{"role": "user", "content": " qzASKzq "}]
    if " qzASKzq " not in render(message):
        notes.append(
            "The model's template cuts white space around messages, which Ollama's cannot: send none."
        )
    if later(message) != render(message):
        notes.append(
            "The model's template tells the day, and the Modelfile only the day that it was written for."
        )
    return notes


def _renderer(source: str, now: datetime, told: Mapping[str, Any], cut: str) -> Render:
    """The template as a function of messages, without `cut` at the start, which the engine adds."""
    program = TemplateProgram(source, now)

    def render(messages: Sequence[Any], *, tools: Any = None, **more: Any) -> str:
        variables = {"add_generation_prompt": False, **told, **more}
        return program.render(messages, {**variables, **({"tools": tools} if tools else {})}).removeprefix(
            cut
        )

    return render


def _refused(why: str) -> ModelError:
    return ModelError(
        f"no template in Ollama's language is known that writes what this model's chat template writes: {why}. "
        "Export gguf:TYPE and run it with llama.cpp's server (llama-server --jinja), which runs the template itself."
    )

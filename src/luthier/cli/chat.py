"""Talk to a model or a run in the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from luthier.data.chat import ChatTemplate
    from luthier.models.inference import Loaded
    from luthier.rollout.sampling import SamplingSettings
    from luthier.serve.chat import ChatSession, Tools

THINKING = ("fold", "show", "off")


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or what `model:` takes in a config."),
    ],
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[
        float, typer.Option(help="Higher is more varied; 0 always takes the likeliest.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens with this probability.")
    ] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from this many of the likeliest tokens.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 512,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable. Absent: drawn anew.")] = None,
    thinking: Annotated[
        str,
        typer.Option(help="Thoughts before an answer. fold: on request; show: always; off: asks for none."),
    ] = "fold",
    tools: Annotated[
        Path | None, typer.Option(help="JSON file with a list of tools; you type the results of calls.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="A run before and after training, side by side. Loads both.")
    ] = False,
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this one question and leave.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Refuse the network.")] = False,
) -> None:
    """Talk to a model or a run. Questions can also be piped in, one a line; /help lists the commands."""
    from secrets import randbits

    from luthier.rollout.sampling import SamplingSettings

    # before the model is loaded, so that a wrong option is told at once
    drawn = randbits(31) if seed is None else seed
    settings = SamplingSettings(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=drawn
    )
    definitions = _checked(name, thinking, compare, tools)
    from luthier.serve.side_by_side import SideBySide
    from luthier.serve.terminal import Terminal, answer, converse

    terminal = Terminal(fold=thinking != "show")
    if terminal.interactive:
        terminal.note(f"Loading {name} ...")

    def start(trained: bool) -> "ChatSession":
        loaded, template = _load(name, trained, offline)
        own = _template_args(template, thinking)
        terminal.thinks_at_once = _opens_thoughts(template, own)
        return _session(loaded, template, settings, system, _tools(template, definitions, tools), own)

    session = SideBySide({"before": start(False), "after": start(True)}) if compare else start(True)
    if once is not None:
        answer(session, terminal, once)
    else:
        converse(session, terminal)


def _checked(name: str, thinking: str, compare: bool, tools: Path | None) -> "list[Any] | None":
    """What can be known to be wrong before anything is loaded; returns the tools."""
    if thinking not in THINKING:
        raise ConfigError(f"--thinking is {thinking!r}; known: {', '.join(THINKING)}")
    if compare and not (Path(name) / "config.yaml").is_file():
        raise ConfigError(
            f"--compare sets a run beside its base model, and {name} is not the folder of a run; leave it out"
        )
    return _definitions(tools)


def _definitions(file: Path | None) -> "list[Any] | None":
    """The tools in a file."""
    if file is None:
        return None
    from luthier.data.calls import checked_tools
    from luthier.errors import RowRefused

    try:
        found = checked_tools(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--tools {file} cannot be read ({error.strerror}); give a JSON file") from error
    except RowRefused as error:
        raise ConfigError(
            f"--tools {file}: {error}; give a JSON list of tools as in data with tools"
        ) from error
    if not found:
        raise ConfigError(f"--tools {file} has no tools")
    return found


def _load(name: str, trained: bool, offline: bool) -> "tuple[Loaded, ChatTemplate]":
    from luthier.errors import ModelError
    from luthier.models.inference import load_for_inference

    loaded = load_for_inference(name, adapter=trained, offline=offline)
    if loaded.template is None:
        raise ModelError(
            f"model {name} has no chat template, so it cannot be talked to. Give a model that was tuned for "
            "chat (its name often ends in -Instruct), or a run whose data.template names one."
        )
    return loaded, loaded.template


def _session(
    loaded: "Loaded",
    template: "ChatTemplate",
    settings: "SamplingSettings",
    system: str | None,
    tools: "Tools | None",
    template_args: dict[str, Any],
) -> "ChatSession":
    from luthier.rollout.native import NativeGenerator
    from luthier.serve.chat import ChatSession

    generator = NativeGenerator(loaded.model, eos_token_ids=loaded.eos_token_ids, tokenizer=loaded.tokenizer)
    return ChatSession(generator, template, settings, system=system, tools=tools, template_args=template_args)


def _tools(template: "ChatTemplate", definitions: "list[Any] | None", file: Path | None) -> "Tools | None":
    """The tools with the way in which the model's template writes calls."""
    if definitions is None:
        return None
    from luthier.errors import ModelError
    from luthier.serve.chat import Tools
    from luthier.serve.tool_calls import call_format

    question = [{"role": "user", "content": "?"}]
    format = call_format(template)
    if format is None or template.prompt_text(question) == template.prompt_text(question, definitions):
        raise ModelError(
            f"the model's chat template does not tell it of tools, or writes calls in a way that is not known, so "
            f"--tools {file} cannot be used; leave it out"
        )
    return Tools(definitions, format)


def _template_args(template: "ChatTemplate", thinking: str) -> dict[str, Any]:
    """The switch that tells the template to ask for no thoughts."""
    if thinking != "off":
        return {}
    found = template.thinking_switches(False)
    if not found:
        raise ConfigError(
            "--thinking is off, but the model's chat template has no switch for it; use fold, which keeps thoughts "
            "away from the answers"
        )
    return found


def _opens_thoughts(template: "ChatTemplate", template_args: dict[str, Any]) -> bool:
    """Whether the prompt ends with an open tag, so that the answer begins inside of it."""
    from luthier.serve.thinking import OPENS

    question = [{"role": "user", "content": "?"}]
    return template.prompt_text(question, None, template_args).rstrip().endswith(OPENS)

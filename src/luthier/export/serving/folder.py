"""A folder to serve: the model or the adapter, the command in serve.sh, and what it says in SERVE.md."""

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError
from luthier.export.adapter import base_reference, copy_adapter, settings_of
from luthier.export.from_run import described_in, merge_run, new_folder
from luthier.export.job import Job, Written
from luthier.export.ollama.of_run import config_of, tokenizer_of
from luthier.export.serving.parsers import Speech, how_it_speaks
from luthier.runs.atomic import atomic_folder, check_room

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Facts:
    """What a server must be told."""

    name: str
    """What clients call the model."""
    model: str
    """The folder with the model, seen from the folder that is written; or the base model's name."""
    revision: str | None
    dtype: str
    context: int
    template: bool
    """Whether the chat template is in a file of its own."""
    speaks: Speech
    adapter: dict[str, Any] | None
    """PEFT's settings of an adapter that is not merged."""


@dataclass(frozen=True)
class Server:
    """An engine: how it is called, and how it is told what."""

    title: str
    arguments: Callable[[Facts], list[str]]
    """A function from `Facts` to the command's words."""
    refusals: Callable[[dict[str, Any]], list[str]]
    """A function from PEFT's settings to what the engine would not serve, a text each."""
    about: Sequence[str]
    """Sentences for SERVE.md."""


def write_served(job: Job, server: Server, usual: str) -> Written:
    """The folder. Raises ConfigError where the engine would refuse the adapter, before anything is written."""
    target = new_folder(job.target(usual))
    facts = _facts(job)
    if facts.adapter is not None and (reasons := server.refusals(facts.adapter)):
        raise ConfigError(
            f"{server.title} cannot serve this adapter beside its base model: {'; '.join(reasons)}. "
            "Leave out --adapter-only: the merged model needs none of this."
        )
    words = server.arguments(facts)
    with atomic_folder(target, replace=False) as partial:
        if facts.adapter is not None:
            copy_adapter(job, partial)
        else:
            _model(job, partial)
        script = partial / "serve.sh"
        script.write_text(_script(words), encoding="utf-8")
        script.chmod(0o755)
        (partial / "SERVE.md").write_text(_page(server, facts, words), encoding="utf-8")
    notes = (f"Next: sh {target / 'serve.sh'}", *facts.speaks.notes)
    return Written(
        f"folder for {server.title}",
        target,
        target,
        notes=notes,
        how=f"    {shlex.join(words)}\n\nor `sh serve.sh`; SERVE.md says more.",
    )


def _model(job: Job, out: Path) -> None:
    """Fills `out` with the run's model."""
    if job.whole:
        check_room(out, sum(file.stat().st_size for file in job.folder.model.rglob("*")))
        shutil.copytree(job.folder.model, out, dirs_exist_ok=True)
        return
    merged = out / "merged"
    merge_run(job, merged)
    for file in merged.iterdir():
        file.rename(out / file.name)
    merged.rmdir()


def _facts(job: Job) -> Facts:
    config: Any = config_of(job).get_text_config()
    template = _template(job)
    adapter, model, revision = None, ".", None
    if job.adapter_only:
        if job.whole:
            raise ConfigError(
                f"{job.folder.path} tuned all weights, so there is no adapter. Leave out --adapter-only."
            )
        adapter = settings_of(job.folder.adapter)
        model, revision = base_reference(job)
    dtype = str(getattr(config, "dtype", None) or "auto").removeprefix("torch.")
    return Facts(
        name=job.folder.path.absolute().name,
        model=model,
        revision=revision,
        dtype=dtype,
        context=int(config.max_position_embeddings),
        template=(described_in(job, "tokenizer.json") / TEMPLATE).is_file(),
        speaks=how_it_speaks(template, _day(job), job.config.data.template_args),
        adapter=adapter,
    )


def _template(job: Job) -> str | None:
    found = tokenizer_of(job).chat_template
    return found.get("default") if isinstance(found, dict) else found


def _day(job: Job) -> datetime:
    day = job.config.data.date
    return datetime.now() if day is None else datetime.fromisoformat(day)


def _script(words: Sequence[str]) -> str:
    return f'#!/bin/sh\ncd "$(dirname "$0")" || exit 1\nexec {shlex.join(words)} "$@"\n'


def _page(server: Server, facts: Facts, words: Sequence[str]) -> str:
    lines = [
        f"# {facts.name} in {server.title}",
        "",
        "`sh serve.sh` serves it on this machine alone; further options can follow (`--port 9000`). The command:",
        "",
        f"    {shlex.join(words)}",
        "",
        f"- Weights: {facts.dtype}. Context: {facts.context} tokens, all that it can read; fewer take less memory.",
        *(f"- {note}" for note in (*server.about, *facts.speaks.notes)),
    ]
    return "\n".join(lines) + "\n"

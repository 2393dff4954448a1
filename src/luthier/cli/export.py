"""Write what a run trained in the form that it is used in: merged into its base model, or a file for llama.cpp."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from luthier.cli import _export_options as options
from luthier.cli._export_verify import prove, rows_for
from luthier.errors import ConfigError
from luthier.export.forms import chosen_form

if TYPE_CHECKING:
    from luthier.config.tree import Config
    from luthier.export.job import Job, Written

BASES = ("trained", "original")


def command(
    run: options.Run,
    to: options.To = "merged",
    out: options.Out = None,
    base: options.Base = "trained",
    verify: options.Verify = True,
    verify_prompts: options.VerifyPrompts = 8,
    kind: options.Kind = None,
    adapter_only: options.AdapterOnly = False,
    push: options.Push = None,
    public: options.Public = False,
) -> None:
    """Write what a run trained in the form that it is used in, and prove that it is the same model.

    Example: luthier export runs/tickets --to gguf:q8_0
    """
    from luthier.config.load import load_config
    from luthier.export.job import Job, finished

    if base not in BASES:
        raise ConfigError(f"--base is {base!r}; known: {', '.join(BASES)}.")
    write, kind = chosen_form(f"{to}:{kind}" if kind else to)
    folder = finished(run)
    config = load_config(folder.config)
    _refuse_adding_twice(config, base)
    if push is not None:
        from luthier.export.push import check_push

        check_push(push, config)
    job = Job(folder, config, _bar, out, kind, base, lambda folder: rows_for(config, folder), adapter_only)
    written = write(job)
    prove(job, written, verify_prompts if verify else 0)
    print(f"{written.what}: {written.path}")
    if config.qat is not None and config.qat.name != written.kind:
        print(
            f"This run was trained for {config.qat.name}, so {written.kind or '16 bit'} is not what it learned to bear."
        )
    if config.quant is not None and not job.whole:
        print(_which_base(config.quant.name, base))
    for note in written.notes:
        print(note)
    card = _card(job, written)
    if push is not None:
        from luthier.export.push import push as upload

        print(f"on the hub: {upload(written.path, card, push, private=not public)}")


def _card(job: "Job", written: "Written") -> str:
    """The model card, which is written into a folder that was exported."""
    from luthier.export.card import CARD, model_card
    from luthier.models.base import base_folder
    from luthier.runs.atomic import atomic_write_text

    text = model_card(job.folder, job.config, base_folder(job.config), written.how)
    if written.path.is_dir():
        atomic_write_text(written.path / CARD, text)
    return text


def _refuse_adding_twice(config: "Config", base: str) -> None:
    if base == "original" and config.lora is not None and config.lora.init == "loftq":
        raise ConfigError(
            "--base is 'original', but an adapter that was started by loftq holds what the stored weights lost, "
            "and would add it to weights that have it. Use --base trained."
        )


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar in the terminal; called with how many are done, of how many, and the name of the last."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


def _which_base(scheme: str, base: str) -> str:
    """What a merged model is, whose adapter was trained beside weights in few bits."""
    if base == "trained":
        return (
            f"Its weights are those that {scheme} decodes to, plus the adapter: the model that was trained and "
            "evaluated. For the weights before they were stored: --base original"
        )
    return (
        f"Its weights are those from before they were stored in {scheme}, plus the adapter, which was trained beside "
        "the stored ones: evaluate it before use. For the model that was trained: --base trained"
    )

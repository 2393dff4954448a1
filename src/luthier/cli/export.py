"""Write what a run trained in the form that it is used in: merged into its base model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from luthier.config.tree import Config
    from luthier.runs.folder import RunFolder

GGUF = "gguf:"
FORMS = ("merged", "gguf:TYPE")
BASES = ("trained", "original")


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            help="The form. merged: a model folder for transformers and vLLM; gguf:TYPE: a file for llama.cpp and "
            "Ollama in f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0."
        ),
    ] = "merged",
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write. Absent: into the run's folder, under the form's name."),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="After training beside weights in few bits (quant): what is merged into. trained: the weights that "
            "these bits decode to, which is the model that was trained; original: the weights before."
        ),
    ] = "trained",
) -> None:
    """Write what a run trained in the form that it is used in.

    Example: luthier export runs/tickets --to gguf:q8_0
    """
    from luthier.config.load import load_config
    from luthier.runs.folder import RunFolder

    if base not in BASES:
        raise ConfigError(f"--base is {base!r}; known: {', '.join(BASES)}.")
    kind = _gguf_type(to)
    folder = RunFolder.open(run)
    whole = folder.model.is_dir()
    if whole and kind is None:
        raise ConfigError(
            f"{run} tuned all weights, so there is no adapter to merge: its model is {folder.model}."
        )
    if not whole and not folder.adapter.is_dir():
        raise ConfigError(f"{run} has no adapter/ yet: it has not finished. Continue it with --resume.")
    config = load_config(folder.config)
    _refuse_adding_twice(config, base)
    if kind is None:
        target = out if out is not None else folder.path / to
        _merge(config, folder.adapter, target, base)
    else:
        target = out if out is not None else folder.path / "gguf" / f"{folder.path.name}-{kind}.gguf"
        _to_gguf(config, folder, target, kind, base)
    print(f"{'merged model' if kind is None else 'GGUF'}: {target}")
    if config.qat is not None and config.qat.name != kind:
        print(
            f"This run was trained for {config.qat.name}, so {kind or '16 bit'} is not what it learned to bear."
        )
    if config.quant is not None and not whole:
        print(_which_base(config.quant.name, base))


def _refuse_adding_twice(config: "Config", base: str) -> None:
    if base == "original" and config.lora is not None and config.lora.init == "loftq":
        raise ConfigError(
            "--base is 'original', but an adapter that was started by loftq holds what the stored weights lost, "
            "and would add it to weights that have it. Use --base trained."
        )


def _gguf_type(to: str) -> str | None:
    """The type after `gguf:`; None for a merged model."""
    if to == "merged":
        return None
    if not to.startswith(GGUF):
        raise ConfigError(
            f"--to is {to!r}, which is not a form that can be written. Known: {', '.join(FORMS)}."
        )
    from luthier.models.gguf import need_packages

    need_packages("writing a GGUF")
    from luthier.export.gguf.types import TYPES

    kind = to.removeprefix(GGUF).lower()
    if kind not in TYPES:
        raise ConfigError(
            f"--to is {to!r}, and {kind!r} is no type that can be written. Known: {', '.join(TYPES)}."
        )
    return kind


def _to_gguf(config: "Config", folder: "RunFolder", target: Path, kind: str, base: str) -> None:
    """The run's model as a file; an adapter is merged beside the file first, and that folder removed again."""
    from tempfile import TemporaryDirectory

    from luthier.export.gguf.write import write_gguf
    from luthier.export.heads import has_other_head

    if target.exists():
        raise ConfigError(f"{target} exists already. Remove it, or give another file with --out.")
    exact = _left_exact(config)
    if folder.model.is_dir():
        with _bar("writing") as progress:
            write_gguf(folder.model, target, kind, name=folder.path.name, exact=exact, progress=progress)
        return
    if has_other_head(folder.adapter):
        raise ConfigError(
            f"{folder.path} trained a model that scores; a GGUF is written of models that write only."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".merged-") as scratch:
        merged = Path(scratch) / folder.path.name
        _merge(config, folder.adapter, merged, base, wide=True)
        with _bar("writing") as progress:
            write_gguf(merged, target, kind, name=folder.path.name, exact=exact, progress=progress)


def _left_exact(config: "Config") -> list[str]:
    """Layers that a run for few bits did not round, by their names: they are not stored in these either."""
    if config.qat is None:
        return []
    return [*config.qat.skip, *(config.lora.modules_to_save if config.lora else ())]


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


def _merge(config: "Config", adapter: Path, target: Path, chosen_base: str, *, wide: bool = False) -> None:
    from luthier.export.heads import has_other_head, merge_head_to_folder
    from luthier.export.merge import merge_to_folder
    from luthier.export.peft import merge_peft_to_folder
    from luthier.models.base import base_folder
    from luthier.models.peft_adapters.attach import peft_type_of
    from luthier.models.quantised.chosen import chosen

    quantisation = chosen(config) if chosen_base == "trained" else None
    base = base_folder(config)
    if peft_type_of(adapter) is not None:
        merge_peft_to_folder(base, adapter, target, quantisation=quantisation, wide=wide)
        return
    if has_other_head(adapter):
        merge_head_to_folder(base, adapter, target, quantisation=quantisation)
        return
    with _bar("merging") as progress:
        merge_to_folder(base, adapter, target, progress=progress, quantisation=quantisation, wide=wide)

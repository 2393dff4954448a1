"""Luthier fine-tunes open language models: any method, any adapter, from raw data to a verified model.

    import luthier

    result = luthier.train({"model": "demo:smollm2-135m", "data": "chats.jsonl", "lora": {"rank": 16}})
    assistant = luthier.load(result.folder)
    print(assistant.answer("Hello!"))

Importing this package imports neither torch nor transformers; the functions do, when they are called.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.threads import wait_without_spinning

if TYPE_CHECKING:
    from luthier.config.tree import Config
    from luthier.serve.assistant import Assistant
    from luthier.training.export_run import Exported
    from luthier.training.run import Result

__version__ = "0.1.0"
__all__ = ["check", "export_run", "load", "merge", "train"]


def check(config: "str | Path | Mapping[str, Any] | Config", overrides: Sequence[str] = ()) -> "Config":
    """The resolved configuration: of a YAML file, of plain values, or of a tree made before.

    Raises:
        ConfigError: with every fault that was found.
    """
    from luthier.config.dump import config_values
    from luthier.config.load import config_from_dict, load_config

    overrides = [overrides] if isinstance(overrides, str) else overrides
    if isinstance(config, str | Path):
        return load_config(Path(config), overrides)
    return config_from_dict(config if isinstance(config, Mapping) else config_values(config), overrides)


def train(
    config: "str | Path | Mapping[str, Any] | Config",
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    allow_changes: bool = False,
    say: Callable[[str], None] = print,
) -> "Result":
    """Runs what `luthier train` runs, and returns where the results lie and what was reached.

    Args:
        config: a YAML file, plain values as in one, or a `Config`.
        overrides: `key=value` settings laid over it.
        resume: continue the run's last checkpoint.
        allow_changes: resume although the config was changed.
        say: told in a sentence what happens.
    """
    wait_without_spinning()
    from luthier.training.run import run

    return run(check(config, overrides), resume=resume, allow_changes=allow_changes, say=say)


def load(
    name: str | Path, *, adapter: bool = True, device: str = "auto", offline: bool = False
) -> "Assistant":
    """A model to talk to: a run's folder, or anything that `model:` takes in a config.

    Args:
        name: which.
        adapter: False gives a run's base model without what was trained.
        device: auto, cpu or cuda.
        offline: refuse the network.
    """
    wait_without_spinning()
    from luthier.models.inference import load_for_inference
    from luthier.serve.assistant import Assistant

    return Assistant(load_for_inference(str(name), adapter=adapter, device=device, offline=offline))


def export_run(
    run: str | Path,
    to: str = "merged",
    out: str | Path | None = None,
    *,
    prompts: int = 8,
    say: Callable[[str], None] = print,
) -> "Exported":
    """Writes what a run trained in the form that it is used in, as `luthier export` does, and compares it with what was
    trained.

    Args:
        run: the run's folder.
        to: the form, such as `merged` or `gguf:q8_0`.
        out: where to write; in the run's folder if absent.
        prompts: how many prompts of the run's own rows both models are asked; 0 compares nothing.
        say: told the verdict.

    Raises RunError if what was written is another model; it then has `.unverified` in its name.
    """
    wait_without_spinning()
    from luthier.training import export_run as exporting

    return exporting.export_run(
        Path(run), to, Path(out) if out is not None else None, prompts=prompts, say=say
    )


def merge(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes a run's adapter into its base model: a folder that transformers, vLLM and others load. Returns it.

    Args:
        run: the run's folder.
        out: where to write; `merged` in the run's folder if absent.
    """
    from luthier.config.load import load_config
    from luthier.errors import ModelError
    from luthier.export.merge import merge_to_folder
    from luthier.models.load import resolve_model

    folder = Path(run)
    if not (folder / "adapter").is_dir() and (folder / "model").is_dir():
        raise ModelError(
            f"{folder} tuned all weights, so there is nothing to merge: {folder / 'model'} is whole."
        )
    config = load_config(folder / "config.yaml")
    target = Path(out) if out is not None else folder / "merged"
    base = resolve_model(config.model.name, revision=config.model.revision, offline=config.offline)
    merge_to_folder(base, folder / "adapter", target)
    return target

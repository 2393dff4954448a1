"""A run's adapter as a folder of its own, in PEFT's format, with all that it is used with."""

import json
import shutil
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError
from luthier.export.job import Job
from luthier.export.merge import FROM_ADAPTER
from luthier.models.adapter_plan import CONFIG_NAME
from luthier.models.base import base_folder


def copy_adapter(job: Job, out: Path) -> None:
    """Fills `out` with adapter, tokenizer and chat template, and names the base model so that PEFT finds it.

    Raises ConfigError for a run without an adapter.
    """
    if job.whole:
        raise ConfigError(
            f"{job.folder.path} tuned all weights, so it has no adapter: its model is {job.folder.model}."
        )
    shutil.copytree(job.folder.adapter, out, dirs_exist_ok=True)
    base = base_folder(job.config)
    if not (out / "tokenizer.json").is_file():
        for name in FROM_ADAPTER:
            if (base / name).is_file() and not (out / name).is_file():
                shutil.copyfile(base / name, out / name)
    name, revision = base_reference(job)
    for path in out.rglob(CONFIG_NAME):
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": name, "revision": revision}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def base_reference(job: Job) -> tuple[str, str | None]:
    """Where others find the base model: its name on the hub and its revision, or the folder on this machine.

    A GGUF file is known to them by the folder that it was unpacked into.
    """
    from luthier.models.load import HUB_ID, gguf_file

    model = job.config.model
    named = Path(model.name).expanduser()
    if gguf_file(model.name) is None and HUB_ID.fullmatch(model.name) and not named.exists():
        return model.name, model.revision
    return str(base_folder(job.config).absolute()), None


def settings_of(folder: Path) -> dict[str, Any]:
    """What adapter_config.json says."""
    return json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))

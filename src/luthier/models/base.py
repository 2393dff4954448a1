"""The folder with the base model of a run, as its config wants its weights."""

from pathlib import Path

from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.gguf_packed import pack_gguf
from luthier.models.load import gguf_file, resolve_model
from luthier.models.quantised.unpack import stored_as, unpacked


def base_folder(config: Config) -> Path:
    """The folder with the model of a config. Errors: see `folder_of`."""
    model = config.model
    return folder_of(model.name, model.revision, config.offline, model.unpack)


def folder_of(name: str, revision: str | None, offline: bool, unpack: bool | None) -> Path:
    """The model's folder, with its weights as `model.unpack` wants them: true unpacks what others stored in few bits,
    false keeps even a GGUF file's blocks.

    Raises:
        ModelError: there is no such model, or it is stored in a format that is not known.
    """
    if unpack is False and (file := gguf_file(name)) is not None:
        return pack_gguf(file)
    folder = resolve_model(name, revision=revision, offline=offline)
    return unpacked(folder) if unpack else folder


def folder_to_train(config: Config) -> Path:
    """The folder with the model of a config that is to be trained.

    Raises:
        ConfigError: all weights would be trained, though they are stored in few bits.
        ModelError: see `folder_of`.
    """
    folder = base_folder(config)
    if config.lora is None and (kind := stored_as(folder)):
        raise ConfigError(
            f"model.name: {config.model.name} is stored as {kind}. Such weights cannot be trained themselves. Add the "
            "section lora (`lora: {}`), or set model.unpack: true to decode them once and train them all."
        )
    return folder

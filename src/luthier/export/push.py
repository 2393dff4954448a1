"""What was exported, on Hugging Face's hub."""

import os
from pathlib import Path
from typing import Any

from luthier.config.tree import Config
from luthier.errors import ConfigError, ModelError
from luthier.export.card import CARD
from luthier.models.load import HUB_ID


def check_push(repository: str, config: Config) -> None:
    """Raises ConfigError where nothing can be uploaded, before anything is written."""
    if not HUB_ID.fullmatch(repository):
        raise ConfigError(f"--push is {repository!r}; give the name of a repository on the hub, owner/name.")
    if config.offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        why = "offline is set in the run's config" if config.offline else "HF_HUB_OFFLINE is set"
        raise ConfigError(f"--push needs the network, and {why}. Leave out --push, or allow it.")
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError("--push needs an account on the hub: run `hf auth login`, or set HF_TOKEN.")


def push(path: Path, card: str, repository: str, *, private: bool, api: Any = None) -> str:
    """Uploads a folder, or a file with its card, to a repository that is made if there is none; returns its address.

    Args:
        api: huggingface_hub's HfApi, or what stands for it.

    Raises ModelError where the hub refuses or cannot be reached. What was exported stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi() if api is None else api
    try:
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        if path.is_dir():
            api.upload_folder(repo_id=repository, folder_path=str(path), commit_message=f"Upload {path.name}")
        else:
            api.upload_file(path_or_fileobj=str(path), path_in_repo=path.name, repo_id=repository)
            api.upload_file(path_or_fileobj=card.encode(), path_in_repo=CARD, repo_id=repository)
    except (HfHubHTTPError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path} could not be uploaded to {repository}: {first}. It is still there; try again."
        ) from error
    return address

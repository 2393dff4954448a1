"""What describes a model besides its weights."""

import shutil
from pathlib import Path

from luthier.export.merge import NOT_COPIED


def copy_described(folder: Path, out: Path) -> None:
    """Copies every file of a model's folder that holds no weights."""
    skipped = {file for pattern in NOT_COPIED for file in folder.glob(pattern)}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file not in skipped:
            shutil.copyfile(file, out / file.name)

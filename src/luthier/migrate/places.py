"""Where rows lie, as other tools write it: a file, a folder, a URL, or a set on the hub."""

import re
from pathlib import Path

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+|[A-Za-z0-9][\w-]*")
_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|gz|zst|zip|ya?ml)$", re.IGNORECASE)


def data_path(path: str) -> str:
    """What `data.path` says for a place: `hf:` in front of names of the hub that are nothing here."""
    if "://" in path or path.startswith((".", "/", "~", "hf:")) or _FILE.search(path):
        return path
    if Path(path).exists() or not _HUB.fullmatch(path):
        return path
    return f"hf:{path}"

"""Which kinds of files are read, told by how their names end."""

from luthier.config.paths import DATA_SUFFIXES, PACKED
from luthier.errors import DataError

KINDS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_TABLES = ("parquet", "arrow")
_TEXTS = [("text", packed) for packed in ("", *PACKED)]
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
REFUSED = ".refused.jsonl"
"""How names of files end that hold rows which could not be converted."""
_ABOUT = ("readme", "license", "licence", "notice", "changelog", "citation", "requirements", "contributing")


def kind_of(name: str) -> tuple[str, str] | None:
    """The kind of a file (`lines`, `json`, `csv`, `text`, `parquet`, `arrow`) and how it is packed.

    The second text is `.gz`, `.zst` or empty. None if the name does not end like a data file's.
    """
    name = name.lower()
    packed = next((ending for ending in PACKED if name.endswith(ending)), "")
    plain = name.removesuffix(packed)
    kind = next((kind for ending, kind in KINDS.items() if plain.endswith(ending)), None)
    if kind is None or (packed and kind in _TABLES):
        return None
    return kind, packed


def checked_kind(name: str) -> tuple[str, str]:
    """Like `kind_of`, for a file that a person has named.

    Raises:
        DataError: if it is not known what the file holds.
    """
    found = kind_of(name)
    if found is not None:
        return found
    lower = name.lower()
    if lower.endswith((".zip", ".tar", ".tgz", ".tar.gz", ".tar.zst", ".bz2", ".xz", ".7z")):
        raise DataError(f"{name} is packed in a way that is not read; unpack it, or pack it as .gz or .zst")
    if lower.endswith(PACKED) and kind_of(lower[: lower.rindex(".")]) is not None:
        raise DataError(f"{name}: tables pack their columns themselves; unpack the file")
    raise DataError(
        f"{name} is of an unknown kind; data files end with {', '.join(DATA_SUFFIXES)}. "
        "Convert it, or rename it if it holds one of these"
    )


def choose_rows(names: list[str]) -> tuple[list[str], list[str]]:
    """Which files of a folder hold rows, and which others a person may have expected to be read.

    Text files count only where there is no other kind: next to other data they are notes about it. What the
    hub's tools write about a data set, and texts called README or LICENSE, never count; nor do the refused rows
    that `luthier data convert` puts beside its output.
    """
    kinds = {name: kind_of(name) for name in names}
    saved = any(kind == ("arrow", "") for kind in kinds.values())
    about = {name for name in names if _is_about(name, kinds[name], saved)}
    refused = {name for name in names if name.lower().endswith(REFUSED)}
    known = [name for name in names if kinds[name] is not None and name not in about | refused]
    chosen = [name for name in known if kinds[name] not in _TEXTS] or known
    return chosen, [name for name in names if name not in {*chosen, *about}]


def _is_about(name: str, kind: tuple[str, str] | None, saved: bool) -> bool:
    """Whether a file only describes a data set. `saved`: its folder is one that a `datasets` table was saved to."""
    base = name.rsplit("/", 1)[-1].lower()
    if kind is None or kind in _TEXTS:
        return base.startswith(".") or base.split(".", 1)[0] in _ABOUT
    return base in _NOT_ROWS or (saved and (base == "state.json" or base.startswith("cache-")))

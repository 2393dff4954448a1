"""Data sets of the Hugging Face hub: `hf:org/name`, `hf:org/name@revision`, `hf:org/name/folder/*.parquet`.

Which files belong to a subset and a split is told by the set's card or by their names. Files are fetched into
the hub's own cache when their rows are read, and found there later without the network.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from luthier.config.paths import DATA_SUFFIXES
from luthier.data.sources import splits
from luthier.data.sources.kinds import checked_kind, choose_rows, kind_of
from luthier.data.sources.local import Found
from luthier.errors import DataError

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.+))?")
_PREFIXES = ("hf:", "hf://datasets/", "https://huggingface.co/datasets/")


@dataclass(frozen=True)
class HubFile:
    """One file of a data set on the hub, at one commit."""

    repo: str
    path: str
    commit: str
    size: int | None
    offline: bool

    @property
    def name(self) -> str:
        """`hf:org/name/path`."""
        return f"hf:{self.repo}/{self.path}"

    @property
    def kind(self) -> str:
        """What its name says that it holds."""
        return checked_kind(self.path)[0]

    @property
    def packed(self) -> str:
        """`.gz`, `.zst` or empty."""
        return checked_kind(self.path)[1]

    @property
    def is_here(self) -> bool:
        """Whether it is in the hub's cache already."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo, self.path, repo_type="dataset", revision=self.commit)
        return isinstance(found, str)

    def local(self) -> Path | None:
        """The file in the hub's cache; fetched first if it is not there."""
        return Path(_fetch(self.repo, self.path, self.commit, self.offline))

    def open(self) -> BinaryIO:
        """Its bytes, from the cache."""
        return Path(_fetch(self.repo, self.path, self.commit, self.offline)).open("rb", buffering=1 << 18)

    def stamp(self) -> str:
        """The commit."""
        return self.commit


@dataclass
class _Listing:
    """The files of a data set at one commit."""

    commit: str
    sizes: dict[str, int | None]
    card: str
    folder: Path | None
    """Where they lie in the cache, when the network was not asked."""
    notes: list[str] = field(default_factory=list)


def hub_name(given: str) -> str | None:
    """The hub's name in a path with a prefix that can mean nothing else; None without one."""
    prefix = next((one for one in reversed(_PREFIXES) if given.startswith(one)), None)
    if prefix is None or (prefix.startswith("https") and "/resolve/" in given):
        return None
    return given.removeprefix(prefix).rstrip("/")


def looks_like_hub_name(given: str) -> bool:
    """Whether a name without a prefix could be a data set's on the hub: `org/name`, where no such folder is."""
    return (
        re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?", given) is not None
        and kind_of(given) is None
        and not Path(given).parent.is_dir()
    )


def find_hub(name: str, split: str | None, subset: str | None, offline: bool) -> Found:
    """The files of a data set's subset (by default its only one) and split (by default `train`).

    Raises:
        DataError: if it cannot be reached, is not in the cache while `offline`, or has no such part.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise DataError(
            f"hf:{name} is not written like hf:org/name, hf:org/name@revision or hf:org/name/file"
        )
    repo, where = parts["repo"], f"hf:{parts['repo']}"
    listing = _listing(repo, parts["revision"], offline)
    names = list(listing.sizes)
    if parts["path"]:
        chosen = _under(names, parts["path"], f"hf:{name}")
        if split is not None and not (split == "train" and chosen == [parts["path"]]):
            chosen = splits.files_of_split(chosen, split, where)
    else:
        chosen = _chosen(listing, subset, split or "train", where)
    if not chosen:
        held = ", ".join(sorted(names)[:5]) or "nothing"
        raise DataError(f"{where} has no data files ({', '.join(DATA_SUFFIXES)}) for this; it holds {held}")
    if listing.folder is not None:
        advice = f"fetch it with `hf download --repo-type dataset {repo}` where there is a network"
        splits.check_shards(chosen, f"{where} in the cache", advice)
        for one in chosen:
            if not (listing.folder / one).is_file():
                raise DataError(f"{where}: {one} is not in the cache; {advice}")
    is_offline = listing.folder is not None
    return Found(
        [HubFile(repo, one, listing.commit, listing.sizes[one], is_offline) for one in chosen], listing.notes
    )


def _chosen(listing: _Listing, subset: str | None, split: str, where: str) -> list[str]:
    names = list(listing.sizes)
    by_card = splits.files_of_card(listing.card, names, subset, split, where)
    if by_card is not None:
        return choose_rows(by_card)[0]
    rows, _ = choose_rows(names)
    if subset is not None:
        inside = [name for name in rows if subset in name.split("/")[:-1]]
        if not inside:
            folders = sorted({name.split("/")[0] for name in rows if "/" in name})
            raise DataError(
                f"{where} has no subset `{subset}`: neither its card nor a folder is called that; "
                f"its folders are {', '.join(folders) or 'none'}"
            )
        rows = inside
    return splits.files_of_split(rows, split, where) if rows else []


def _under(names: Sequence[str], path: str, given: str) -> list[str]:
    """The files that a path inside the data set names: one file, a folder or a pattern."""
    if path in names:
        return [path]
    matcher = re.compile(splits.glob_pattern(path) + "(/.*)?")
    chosen, _ = choose_rows([name for name in names if matcher.fullmatch(name)])
    if not chosen:
        raise DataError(f"{given} names no data file of the set; it holds {', '.join(sorted(names)[:5])}")
    return chosen


def _listing(repo: str, revision: str | None, offline: bool) -> _Listing:
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        return _cached(repo, revision, "the network is not to be used")
    return _online(repo, revision)


def _online(repo: str, revision: str | None) -> _Listing:
    from huggingface_hub import HfApi, errors

    try:
        facts = HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    except errors.GatedRepoError as fault:
        raise DataError(
            f"hf:{repo} wants its terms to be accepted; do that on its page, then log in with `hf auth login`"
        ) from fault
    except errors.RepositoryNotFoundError as fault:
        raise DataError(
            f"hf:{repo} is not on the hub, or is private; check the name, or log in with `hf auth login`. "
            "A local path must exist"
        ) from fault
    except errors.RevisionNotFoundError as fault:
        raise DataError(f"hf:{repo} has no revision `{revision}`") from fault
    except Exception as fault:  # no network, a proxy, a server's fault: the cache may still have it
        listing = _cached(repo, revision, f"the hub cannot be reached ({type(fault).__name__})")
        listing.notes.append(f"hf:{repo}: the hub cannot be reached, so the files in the cache are used")
        return listing
    sizes = {one.rfilename: one.size for one in facts.siblings or []}
    commit = str(facts.sha)
    card = ""
    if "README.md" in sizes:
        card = Path(_fetch(repo, "README.md", commit, False)).read_text(encoding="utf-8", errors="replace")
    return _Listing(commit, sizes, card, None)


def _cached(repo: str, revision: str | None, why: str) -> _Listing:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError as fault:
        partial = getattr(
            fault, "snapshot_path", None
        )  # a part of the files is there, maybe those that are wanted
        if partial is None:
            raise DataError(
                f"hf:{repo} is not in the cache, and {why}; fetch it with "
                f"`hf download --repo-type dataset {repo}` where there is a network, or give a local path"
            ) from fault
        folder = Path(partial)
    there = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    sizes: dict[str, int | None] = {**dict.fromkeys(_known_tree(repo, folder.name)), **there}
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return _Listing(folder.name, dict(sorted(sizes.items())), text, folder)


def _known_tree(repo: str, commit: str) -> list[str]:
    """The names of all files at a commit, where an earlier download has noted them."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:  # a version that notes no trees
        return []
    try:
        tree = get_cached_repo_tree(repo, repo_type="dataset", revision=commit)
    except CachedRepoTreeNotFoundError:
        return []
    return [file.path for file in tree]


def _fetch(repo: str, path: str, commit: str, offline: bool) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return str(
            hf_hub_download(repo, path, repo_type="dataset", revision=commit, local_files_only=offline)
        )
    except Exception as fault:  # network, disk and hub errors of several libraries
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise DataError(f"hf:{repo}/{path} cannot be fetched: {reason}") from fault

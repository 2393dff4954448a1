"""From what a person has written in `data` to the files that are read."""

from luthier.data.sources import hub, local, remote
from luthier.data.sources.local import Found
from luthier.errors import DataError


def find_files(
    given: str, split: str | None = None, subset: str | None = None, offline: bool = False
) -> Found:
    """The files behind a path, a pattern, a hub set's name or a URL, in the order they are read.

    Raises:
        DataError: if there is nothing, or nothing that can be read.
    """
    name = hub.hub_name(given)
    if name is not None:
        return hub.find_hub(name, split, subset, offline)
    if given.startswith("file://"):
        given = given.removeprefix("file://")
    found = None if remote.is_url(given) else local.find_local(given, split)
    if found is None and not remote.is_url(given) and hub.looks_like_hub_name(given):
        return hub.find_hub(given, split, subset, offline)
    if subset is not None:
        raise DataError(f"{given}: only hub sets have a `subset`; name the files or the folder instead")
    if found is not None:
        return found
    if remote.is_url(given):
        return remote.find_remote(given, split)
    raise DataError(local.missing(given))

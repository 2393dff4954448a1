"""Settings of single modules of an adapter: the range of layers, and ranks and alphas by pattern."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from luthier.config.lora_section import LAYERS
from luthier.errors import ModelError

Value = TypeVar("Value", int, float)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern means the module at `path`, by PEFT's rule: the end of the name, from a dot on."""
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


def layer_of(path: str) -> int | None:
    """The number of the decoder layer that a module lies in: the first number in its name."""
    found = re.search(r"(?:^|\.)(\d+)\.", path)
    return int(found[1]) if found else None


def in_layers(paths: Sequence[str], layers: str | Sequence[int] | None) -> list[str]:
    """Those of the modules that lie in the decoder layers that `lora.layers` means. Raises ModelError if none does."""
    if layers is None:
        return list(paths)
    numbers = {number for path in paths if (number := layer_of(path)) is not None}
    wanted = wanted_layers(layers, max(numbers, default=-1) + 1)
    found = [path for path in paths if layer_of(path) in wanted]
    missing = wanted - numbers if not isinstance(layers, str) else set()
    if missing or not found:
        have = f"has the layers {min(numbers)} to {max(numbers)}" if numbers else "has no numbered layers"
        raise ModelError(f"lora.layers is {layers}, but what lora.target means {have}. Name some of these.")
    return found


def settings_of(
    paths: Sequence[str],
    rank: int,
    alpha: float | None,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
) -> dict[str, tuple[int, float]]:
    """Rank and alpha of each module; where alpha is not given at all, twice the rank of the module.

    Raises ModelError for a pattern that means none of them.
    """
    for key, patterns in (("lora.ranks", ranks), ("lora.alphas", alphas)):
        for pattern in patterns:
            if not any(matches(pattern, path) for path in paths):
                some = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in paths))
                raise ModelError(
                    f"{key} names {pattern!r}, which none of the adapted modules is called: {some}."
                )
    found = {}
    for path in paths:
        own_rank = _first(ranks, path) or rank
        found[path] = own_rank, _first(alphas, path) or alpha or 2.0 * own_rank
    return found


def _first(patterns: Mapping[str, Value], path: str) -> Value | None:
    return next((value for pattern, value in patterns.items() if matches(pattern, path)), None)


def wanted_layers(layers: str | Sequence[int], number: int) -> set[int]:
    """The decoder layers that a setting means (`8-15`, `8-`, `last 4`, or a list), in a model that has `number`."""
    if not isinstance(layers, str):
        return set(layers)
    match = re.fullmatch(LAYERS, layers)
    assert match is not None, "the config checks it"
    first, last, newest = match.groups()
    if newest:
        return set(range(max(0, number - int(newest)), number))
    return set(range(int(first), int(last) + 1 if last else number))

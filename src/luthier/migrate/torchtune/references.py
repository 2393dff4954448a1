"""`${output_dir}/logs`: references to other keys, as OmegaConf resolves them."""

import re
from typing import Any

_REFERENCE = re.compile(r"\$\{([\w.\-]+)\}")


def resolved(values: dict[str, Any]) -> dict[str, Any]:
    """The tree with its references put in. What cannot be told (environment, arithmetic) stays as it is."""
    return {key: _resolve(value, values, 0) for key, value in values.items()}


def _resolve(value: Any, root: dict[str, Any], depth: int) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, root, depth) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, root, depth) for item in value]
    if not isinstance(value, str) or "${" not in value or depth > 20:
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        found = _find(whole[1], root)
        return value if found is None else _resolve(found, root, depth + 1)
    return _REFERENCE.sub(lambda match: _inserted(match, root, depth), value)


def _inserted(match: re.Match[str], root: dict[str, Any], depth: int) -> str:
    found = _find(match[1], root)
    return (
        match[0] if found is None or isinstance(found, dict | list) else str(_resolve(found, root, depth + 1))
    )


def _find(path: str, root: dict[str, Any]) -> Any:
    here: Any = root
    for part in path.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    return here

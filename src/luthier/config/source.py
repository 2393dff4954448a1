"""Reads YAML with the place of every key, by the core schema of YAML 1.2.

PyYAML reads YAML 1.1, where `2e-4` is text, `no` a boolean and `12:30` a number. Its parser is kept; which
plain scalars are numbers and booleans is decided here. Repeated keys are an error. Anchors and `<<` work.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from luthier.config.places import Fault, KeyPath, Place, Places, Source, dotted
from luthier.config.syntax import explain, not_text
from luthier.errors import ConfigError

MAX_VALUES = 100_000
"""More values than this come from aliases that multiply each other, not from a person."""

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_PATTERNS = {
    _TAG + "null": re.compile(r"null|Null|NULL|~|"),
    _TAG + "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    _TAG + "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    _TAG + "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    _MERGE: re.compile(r"<<"),
}


class CoreLoader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and kind of attribute that PyYAML looks for
        None: [(tag, re.compile(rf"(?:{pattern.pattern})\Z")) for tag, pattern in _PATTERNS.items()]
    }


def read_file(path: Path) -> Source:
    """The values in a YAML file and where each stands. Raises ConfigError where it cannot be read at all."""
    name = str(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{name}: there is no such file{_similar(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{name}: this is a folder; give the YAML file itself") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be read: {error}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(not_text(content, error, name)) from None
    return read_text(text, name)


def read_text(text: str, name: str) -> Source:
    """The values in YAML text and where each stands; a single one without a meaning is absent, with a fault.

    Empty text is an empty configuration. Raises ConfigError for text that is not YAML, or not `key: value`.
    """
    node = _compose(text, name)
    builder = _Builder(Places(Place(name)))
    values = {} if node is None else builder.value(node, ())
    if values is None:
        values = {}
    if not isinstance(values, dict) and not builder.faults:
        raise ConfigError(
            f"{name}:1: the file holds {_kind(values)}, but a configuration is `key: value` lines, "
            "such as `model: NAME`"
        )
    return Source(values if isinstance(values, dict) else {}, builder.places, builder.faults)


def read_value(text: str) -> Any:
    """One value in YAML, as behind the `=` of an override. Raises ConfigError without a place."""
    node = _compose(text, "")
    builder = _Builder(Places(Place("")))
    value = None if node is None else builder.value(node, ())
    if builder.faults:
        raise ConfigError([fault.text for fault in builder.faults])
    return value


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=CoreLoader)
    except RecursionError:
        _fail(name, "is nested too deeply to be a configuration")
    except yaml.YAMLError as error:
        raise ConfigError(explain(error, text, name)) from None
    except (ValueError, OverflowError) as error:  # PyYAML lets these through for impossible \U escapes
        _fail(name, f"is not YAML: {error}")


def _fail(name: str, text: str) -> NoReturn:
    raise ConfigError(f"{name}: {text}" if name else text) from None


class _Builder:
    """Turns the parser's nodes into plain values, noting the line of each key and every fault."""

    def __init__(self, places: Places):
        self.places = places
        self.faults: list[Fault] = []
        self._open: set[int] = set()  # nodes being read, to notice an anchor that contains itself
        self._num_values = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """The plain value of a node; after a fault, a stand-in."""
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            if self._num_values == MAX_VALUES + 1:
                self._fault(node, f"aliases expand to over {MAX_VALUES:,} values; write them out")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            return self._fault(node, f"the anchor of {dotted(path) or 'this value'} contains itself")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._unknown_tag(node)
        finally:
            self._open.discard(id(node))

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places.of_key[path] = self._place(node)
        return self.value(node, path)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind in ("str", "merge"):
            return text
        pattern = _PATTERNS.get(node.tag)
        if pattern is None:
            return self._unknown_tag(node)
        if not pattern.fullmatch(text):
            return self._fault(node, f'"{text}" is marked !!{kind}, but is none')
        try:
            return _SCALARS[kind](text)
        except ValueError:  # Python refuses to read numbers of several thousand digits
            return self._fault(node, f"a number of {len(text):,} digits is too long")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in reversed(node.value):
            if key_node.tag == _MERGE:  # of several, the first one wins
                values |= self._merged(value_node, path)
        own: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self._key(key_node)
            if key is None:
                continue
            line = key_node.start_mark.line + 1
            if key in own:
                where = "in the same line" if own[key] == line else f"first in line {own[key]}"
                self._fault(key_node, f"{dotted((*path, key))} is given twice, {where}; keep one of them")
            own[key] = line
            self.places.of_key[(*path, key)] = self._place(key_node)
            values[key] = self.value(value_node, (*path, key))
        return values

    def _merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        values = self.value(node, path)
        parts = values if isinstance(values, list) else [values]
        if not all(isinstance(part, dict) for part in parts):
            self._fault(node, "<< takes a section or a list of sections, such as `<<: *name`")
            return {}
        merged: dict[str, Any] = {}
        for part in reversed(parts):
            merged |= part
        return merged

    def _key(self, node: yaml.Node) -> str | None:
        if isinstance(node, yaml.ScalarNode):
            if node.tag == _TAG + "str":
                return node.value
            if node.value:
                return self._fault(
                    node, f"the key {node.value} is not a name; put it in quotes if it is meant"
                )
        return self._fault(node, "a key must be a name, such as `train:`")

    def _unknown_tag(self, node: yaml.Node) -> None:
        tag = "!!" + node.tag.removeprefix(_TAG) if node.tag.startswith(_TAG) else node.tag
        self._fault(node, f"the tag {tag} has no meaning here; remove it")

    def _fault(self, node: yaml.Node, text: str) -> None:
        self.faults.append(Fault(self._place(node), text))

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.places.source.label, node.start_mark.line + 1)


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _float(text: str) -> float:
    return float(text.replace(".", "") if text[-1].isalpha() else text)


_SCALARS = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": _float,
}


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a single value"


def _similar(path: Path) -> str:
    """A hint at a file whose name is close, if there is one."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        return ""
    near = get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""

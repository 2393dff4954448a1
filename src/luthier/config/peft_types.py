"""The adapters of the library `peft`: names, settings and kinds of values, read from its source without importing it.

Importing peft takes torch with it, and a config is checked without. So the installed version's own files are parsed:
`register_peft_method` calls have the names, the dataclasses behind `config_cls` the settings.
"""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

OWN = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
       "inference_mode", "runtime_config"}  # fmt: skip
"""Settings that a run fills in itself."""

REFUSED = {
    "lora": "the section lora has it, computed in fewer products; write `lora: {rank: 16}` instead of this section",
    "poly": "each of its rows must name a task, and rows of Luthier have none",
    "multitask_prompt_tuning": "each of its rows must name a task, and rows of Luthier have none",
    "cpt": "it trains by a loss of its own that weights the tokens of its prompt; prompt_tuning trains by any method",
    "lily": "it averages over all tokens that it reads at once, later ones and other documents too, so that training "
    "would see what an answer has yet to say",
    "xlora": "it runs the model twice for each token, once to choose between adapters that exist already",
    "shadow": "it runs a second, smaller model beside the base, which packed documents do not go through",
    "osf": "it takes every weight apart and trains nearly all of them; leave out this section to tune all weights",
}
"""Types of peft that do not work here, and why."""

NEEDED = {
    "trainable_tokens": {"token_indices": "ids of the tokens whose embeddings are trained, such as [2]"},
    "adaption_prompt": {
        "adapter_len": "how many tokens each layer learns, such as 10",
        "adapter_layers": "how many layers, counted from the last, such as 30",
    },
}
"""Settings that peft gives no default and cannot do without."""

_PROMPT = {"num_virtual_tokens": "how many tokens are learned, such as 20"}

_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "list": (list,), "dict": (dict,),
    "None": (), "set": (list,), "tuple": (list,),
}  # fmt: skip
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list",
          "dict": "a section with keys", "set": "a list", "tuple": "a list"}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A setting of an adapter: the kinds of value that it takes, and the values if only some do."""

    kinds: frozenset[str]
    """Of `_KINDS`; empty: anything."""
    choices: tuple[Any, ...] = ()

    def fits(self, value: Any) -> bool:
        """Whether the value may be meant; peft itself looks at the rest."""
        if not self.kinds and not self.choices:
            return True
        if value in self.choices and not isinstance(value, list | dict):
            return True
        allowed = {kind for name in self.kinds for kind in _KINDS[name]}
        if isinstance(value, bool):
            return bool in allowed
        return isinstance(value, tuple(allowed))

    def expected(self) -> str:
        """What fits, in words."""
        words = [_WORDS[name] for name in _WORDS if name in self.kinds]
        return " or ".join([*dict.fromkeys(words), *map(str, self.choices)])


@cache
def peft_types() -> dict[str, dict[str, Setting]] | None:
    """The settings of each type of adapter that is registered; None if peft is not installed."""
    folder = _folder()
    if folder is None:
        return None
    classes: dict[str, ast.ClassDef] = {}
    for path in (folder / "config.py", *sorted((folder / "tuners").rglob("*.py"))):
        if path.name in ("config.py", "lycoris_utils.py"):
            classes |= {node.name: node for node in _tree(path).body if isinstance(node, ast.ClassDef)}
    found = {}
    for path in sorted((folder / "tuners").glob("*/__init__.py")):
        for name, config in _registered(_tree(path)):
            found[name] = {key: s for key, s in _settings(config, classes).items() if key not in OWN}
    return found


@cache
def prompt_types() -> frozenset[str]:
    """The types that learn something to stand before the tokens, and leave the model's layers alone."""
    known = peft_types() or {}
    return frozenset(name for name, settings in known.items() if "num_virtual_tokens" in settings)


def needed(name: str) -> dict[str, str]:
    """The settings that must be given for a type, each with words for what it is."""
    return NEEDED.get(name, _PROMPT if name in prompt_types() else {})


def _folder() -> Path | None:
    found = importlib.util.find_spec("peft")
    return Path(found.origin).parent if found is not None and found.origin else None


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _registered(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Name and config class of each adapter that a module registers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register_peft_method":
            given = {word.arg: word.value for word in node.keywords}
            name, config = given.get("name"), given.get("config_cls")
            if (
                isinstance(name, ast.Constant)
                and isinstance(name.value, str)
                and isinstance(config, ast.Name)
            ):
                yield name.value, config.id


def _settings(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, Setting]:
    """The fields of a dataclass with those of the classes it comes from."""
    found: dict[str, Setting] = {}
    node = classes.get(name)
    if node is None:
        return found
    for base in node.bases:
        found |= _settings(getattr(base, "id", ""), classes)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and _is_given(line.value):
            found[line.target.id] = _setting(line.annotation)
    return found


def _is_given(value: ast.expr | None) -> bool:
    """Whether a field is an argument: not so with `field(init=False)`."""
    words = value.keywords if isinstance(value, ast.Call) else []
    return not any(w.arg == "init" and isinstance(w.value, ast.Constant) and not w.value.value for w in words)


def _setting(annotation: ast.expr) -> Setting:
    parts = list(_parts(annotation))
    kinds = {part for part in parts if isinstance(part, str)}
    choices = tuple(part[0] for part in parts if isinstance(part, tuple))
    if not kinds <= _KINDS.keys():  # a class of peft's, or anything at all
        return Setting(frozenset())
    return Setting(frozenset(kinds - {"None"}), choices)


def _parts(annotation: ast.expr) -> Iterator[str | tuple[Any]]:
    """The names of the types that an annotation allows, and `(value,)` for each single value."""
    if isinstance(annotation, ast.Constant):
        yield str(annotation.value)
    elif isinstance(annotation, ast.BinOp):
        yield from _parts(annotation.left)
        yield from _parts(annotation.right)
    elif isinstance(annotation, ast.Subscript):
        name = getattr(annotation.value, "id", getattr(annotation.value, "attr", ""))
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        if name in ("Optional", "Union"):
            for part in inner:
                yield from _parts(part)
        elif name == "Literal":
            for part in inner:
                yield (ast.literal_eval(part),)
        else:
            yield name.lower()
    else:
        yield getattr(annotation, "id", "anything")

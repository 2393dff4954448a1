"""Turns what pydantic found wrong into faults with a place, the dotted key and plain words."""

from collections.abc import Container, Iterable, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from luthier.config.places import Fault, KeyPath, Place, Places, dotted
from luthier.config.plugins import known_plugins
from luthier.config.schema_generator import UntitledJsonSchema
from luthier.config.tree import Config
from luthier.config.words import Schema, nearest, shown, wrong

_MISSING = " is missing"
_ELSEWHERE = {  # what other tools call a setting
    "learning_rate": "optim.lr",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.steps",
    "output_dir": "run.root",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "warmup_ratio": "schedule.warmup_ratio",
    "warmup_steps": "schedule.warmup_steps",
    "model_name_or_path": "model.name",
    "base_model": "model.name",
    "dataset": "data.path",
    "datasets": "data.path",
    "batch_size": "train.tokens_per_step",
}


def tree_faults(
    error: ValidationError, values: dict[str, Any], places: Places, unreadable: Container[Place] = ()
) -> list[Fault]:
    """The faults that the tree found. What is missing only because it could not be read is not said again."""
    faults = _faults(error, (), values, places, tree_schema(), ())
    return [fault for fault in faults if not (fault.place in unreadable and _MISSING in fault.text)]


@cache
def tree_schema() -> Schema:
    """The JSON Schema of the tree as pydantic makes it. Do not change it."""
    return Config.model_json_schema(schema_generator=UntitledJsonSchema)


def option_faults(
    error: ValidationError,
    section: str,
    values: dict[str, Any],
    places: Places,
    schema: Schema,
    own: Sequence[str],
) -> list[Fault]:
    """The faults in the options of a method or optimizer. `own`: the keys of the section itself."""
    return _faults(error, (section,), values, places, schema, own)


def _faults(
    error: ValidationError,
    base: KeyPath,
    values: dict[str, Any],
    places: Places,
    schema: Schema,
    siblings: Sequence[str],
) -> list[Fault]:
    faults: dict[KeyPath | str, Fault] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] == "impossible":
            for key, text in detail.get("ctx", {})["pairs"]:
                faults[text] = Fault(places.find(tuple(key.split("."))), text)
            continue
        path, field = _field(detail["loc"], schema)
        if path in faults:
            continue  # the other branch of a union
        full = (*base, *path)
        if detail["type"] == "extra_forbidden":
            known = [*siblings, *_keys(schema, path[:-1])]
            text = unknown(full, known)
        elif detail["type"] == "missing":
            text = _missing(full, field)
        else:
            text = wrong(dotted(full), _lookup(values, full, detail["input"]), field)
        faults[path] = Fault(places.find(full), text)
    return list(faults.values())


def unknown(path: KeyPath, siblings: Iterable[str]) -> str:
    """What to say about a key that does not exist: its namesake elsewhere, or the nearest one beside it."""
    key = str(path[-1])
    near = nearest(key, list(siblings))
    everywhere = [*all_keys(), *_option_keys()]
    same_name = [known for known in everywhere if known.rpartition(".")[2] == key]
    meant = _ELSEWHERE.get(key.lower())
    if dotted(path) in same_name:
        meant = dotted(path)
    elif len(same_name) == 1:
        meant = same_name[0]
    elif near is not None:
        meant = dotted((*path[:-1], near))
    elif meant is None:
        by_name = {known.rpartition(".")[2]: known for known in all_keys()}
        meant = by_name.get(nearest(key, list(by_name)) or "")
    name = dotted(path) if dotted(path).isprintable() and len(key) <= 80 else shown(dotted(path))
    if meant == dotted(path):
        return f"unknown key {name}; only {', '.join(_owners(path))} has it"
    return f"unknown key {name}" + (f"; did you mean {meant}?" if meant else "")


def _owners(path: KeyPath) -> list[str]:
    """The methods or optimizers that have this key."""
    plugins = known_plugins().get(str(path[0]), {})
    return [f"{path[0]}: {name}" for name, plugin in plugins.items() if path[-1] in plugin["properties"]]


def all_keys() -> list[str]:
    """Every key of the tree, dotted, without the options of methods and optimizers."""
    keys = []
    for name, field in Config.model_fields.items():
        section = section_class(field.annotation)
        keys += [f"{name}.{inner}" for inner in section.model_fields] if section else [name]
    return keys


def _option_keys() -> list[str]:
    """The options of all methods and optimizers, dotted, each once."""
    groups = known_plugins().items()
    keys = [
        f"{section}.{key}"
        for section, group in groups
        for plugin in group.values()
        for key in plugin["properties"]
    ]
    return list(dict.fromkeys(keys))


def section_class(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of the tree holds; None for a plain value."""
    candidates = getattr(annotation, "__args__", (annotation,))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _missing(path: KeyPath, field: Schema) -> str:
    help_text = field.get("description", "").partition(". ")[0].rstrip(".")
    example = f"{path[0]}: ..." if len(path) == 1 else f"{path[0]}: {{{path[1]}: ...}}"
    help_text = f" ({help_text[0].lower()}{help_text[1:]})" if help_text else ""
    return f"{dotted(path)}{_MISSING}{help_text}; write `{example}`"


def _field(location: KeyPath, schema: Schema) -> tuple[KeyPath, Schema]:
    """The part of pydantic's location that names a key, and the schema there; the rest are union branches."""
    path: KeyPath = ()
    here = schema
    for part in location:
        inner = _inside(here, part, schema)
        if inner is not None:
            path, here = (*path, part), inner
    section = _section(here, schema)
    if section is not None:
        keys = ", ".join(section["properties"])
        here = {
            "type": "object",
            "expected": f"a section with keys ({keys})",
            "description": section["description"],
        }
    return path, here


def _inside(here: Schema, part: str | int, root: Schema) -> Schema | None:
    """The schema of a key or an item; None where the part names a branch of a union instead."""
    section = _section(here, root)
    kinds = (here, *here.get("anyOf", ()))
    if isinstance(part, str) and section is not None:
        return section["properties"].get(part, {})
    if isinstance(part, str):
        free = [k["additionalProperties"] for k in kinds if isinstance(k.get("additionalProperties"), dict)]
        return free[0] if free and part != "[key]" else None
    arrays = [kind for kind in kinds if kind.get("type") == "array"]
    return arrays[0].get("items", {}) if len(arrays) == 1 else None


def _section(here: Schema, root: Schema) -> Schema | None:
    """The schema of the section at this point; None where a plain value stands."""
    for kind in (here, *here.get("anyOf", ())):
        reference = kind.get("$ref")
        resolved = root["$defs"][reference.rpartition("/")[2]] if reference else kind
        if "properties" in resolved:
            return resolved
    return None


def _keys(schema: Schema, path: KeyPath) -> list[str]:
    here: Schema | None = schema
    for part in path:
        here = _inside(here, part, schema) if here else None
    section = _section(here, schema) if here else None
    return list(section["properties"]) if section else []


def _lookup(values: Any, path: KeyPath, otherwise: Any) -> Any:
    """The value as it was written; pydantic shows what the short forms made of it."""
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return otherwise
    return values

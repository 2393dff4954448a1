"""The model card: README.md of what is exported, from what the run wrote down and nothing else."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.config.tree import Config
from luthier.errors import LuthierError
from luthier.models import demo
from luthier.models.load import HUB_ID
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import read_metrics

CARD = "README.md"
COUNTS = ("read", "kept", "truncated", "dropped", "left_out", "set_aside")
VERSIONS = ("luthier", "torch", "transformers")


def model_card(folder: RunFolder, config: Config, base: Path, how: str) -> str:
    """The text. Of files on this machine it has the names only.

    Args:
        base: the base model's folder, whose card says its licence.
        how: how to run what is exported, in Markdown.
    """
    name, licence, model = folder.path.absolute().name, licence_of(config, base), _public(config.model.name)
    head = ["---"]
    head += (
        [f"base_model: {_quoted(model)}"] if model == config.model.name and HUB_ID.fullmatch(model) else []
    )
    head += [f"license: {_quoted(licence)}"] if licence else []
    head += ["library_name: transformers", f"tags: [luthier, {config.method.name}]", "---", ""]
    parts = {
        f"# {name}": [
            f"Trained from `{model}` with Luthier by the method `{config.method.name}`: {_what(config)}."
        ],
        "## How to run it": [how.strip("\n")],
        "## Data": [*_data(folder, config)],
        "## Training": [*_training(folder, config)],
        "## Metrics": [*_metrics(folder)],
        "## Licence": [
            f"The base model is under `{licence}`."
            if licence
            else f"The base model's files do not name its licence. Look at `{model}` before you pass this on."
        ],
    }
    return (
        "\n".join(head)
        + "\n\n".join(f"{title}\n" + "\n".join(lines) for title, lines in parts.items())
        + "\n"
    )


def licence_of(config: Config, base: Path) -> str | None:
    """What the base model's card names, or what is known of a demo model; None where neither says it."""
    named = config.model.name.removeprefix(demo.PREFIX)
    if config.model.name.startswith(demo.PREFIX) and named in demo.DEMOS:
        return demo.DEMOS[named].licence.lower()
    if not (base / CARD).is_file():
        return None
    lines = (base / CARD).read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        key, colon, value = line.partition(":")
        if colon and key == "license":
            return value.strip().strip("'\"") or None
    return None


def _what(config: Config) -> str:
    if config.lora is not None:
        return f"an adapter of rank {config.lora.rank}"
    if config.peft is not None:
        return f"an adapter of the type {config.peft.type}"
    return "weights of the model itself" if config.tune is not None else "all weights"


def _data(folder: RunFolder, config: Config) -> Iterator[str]:
    """Where the rows came from, and what became of them."""
    for one in config.data.all_sets:
        yield f"- `{_public(one.path)}`"
    for name, ledger in _read(folder.ledger).items():
        if isinstance(ledger, Mapping):
            counts = [
                f"{key.replace('_', ' ')} {ledger[key]:,}"
                for key in COUNTS
                if isinstance(ledger.get(key), int)
            ]
            yield f"- {name} rows: {', '.join(counts)}"


def _public(name: str) -> str:
    """A path's last part; names on the hub, of demo models and URLs as they are."""
    local = name.startswith(("/", "~", ".")) or Path(name).exists()
    return Path(name).name if local else name


def _training(folder: RunFolder, config: Config) -> Iterator[str]:
    status = _read(folder.status_file)
    rows = [row for row in _metrics_of(folder) if row.get("kind") == "train"]
    if rows:
        last = rows[-1]
        tokens = f", {last['num_tokens']:,} tokens" if isinstance(last.get("num_tokens"), int) else ""
        yield f"- {last.get('step')} steps{tokens}"
    if status.get("state"):
        yield f"- state of the run: {status['state']}"
    rate = f", learning rate {config.optim.lr}" if config.optim.lr is not None else ""
    yield f"- optimizer `{config.optim.name}`{rate}"
    yield f"- seed {config.seed}"
    packages = _read(folder.environment).get("packages")
    if isinstance(packages, dict):
        yield "- " + ", ".join(f"{key} {packages[key]}" for key in VERSIONS if key in packages)


def _metrics(folder: RunFolder) -> Iterator[str]:
    """The last of each kind, as they were measured."""
    latest: dict[str, Mapping[str, Any]] = {}
    for row in _metrics_of(folder):
        if row.get("kind") == "eval":
            latest["held-out rows"] = row
        elif row.get("kind") == "evaluation":
            latest[f"answers {row.get('when', '')}".strip()] = row
    if not latest:
        yield "None were measured."
    for what, row in latest.items():
        values = {k: v for k, v in row.items() if k not in ("kind", "step", "time", "when") and _is_number(v)}
        yield f"- {what}, step {row.get('step')}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metrics_of(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        return read_metrics(folder.metrics)
    except (LuthierError, OSError):
        return []


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of the run; nothing where it is missing or broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

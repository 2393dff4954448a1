"""What the learning scripts have in common: a quiet run, a model put to rows that it has not learned, and what was
found.
"""

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from bench import results
from bench.watch import ROOT

SHARED = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Findings:
    """What a script found, written to its file after every run, so that one that was cut short loses only that run."""

    path: Path
    outcome: dict[str, Any]

    @property
    def found(self) -> dict[str, Any]:
        """Run by run."""
        return self.outcome["found"]

    def keep(self, name: str, found: Any) -> None:
        """Adds or replaces what one run found."""
        self.found[name] = found
        self.write()

    def write(self, **also: Any) -> None:
        """Writes the file, with what else is to be said of it."""
        results.write({**self.outcome, **also}, self.path)


def findings(kind: str, known: argparse.Namespace) -> Findings:
    """Today's file in the folder `known.out`. What it holds already is kept if it was found with these settings, on a
    machine of this class, from this commit.
    """
    settings = {name: value for name, value in vars(known).items() if name not in ("out", "names")}
    settings = {n: os.path.relpath(v, ROOT) if isinstance(v, Path) else v for n, v in settings.items()}
    machine = results.machine("cpu", None)
    outcome: dict[str, Any] = {"kind": kind, "date": date.today().isoformat(), "settings": settings}
    path = known.out / f"{kind}-{outcome['date']}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = earlier.get("settings") == settings and _of(earlier["machine"]) == _of(machine)
    return Findings(path, {**outcome, "machine": machine, "found": earlier["found"] if same else {}})


def _of(machine: dict[str, Any]) -> tuple[str, str | None]:
    """What must be the same for runs to stand beside each other: processor and commit."""
    return machine["class"], (machine["git"] or {}).get("commit")


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """One row a line; returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def trained(config: dict[str, Any]) -> dict[str, Any]:
    """Runs it; the metrics of each step without those of time."""
    import luthier
    from luthier.runs.metrics import read_metrics

    folder = luthier.train(config, say=lambda line: None).folder
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"]
    left = ("kind", "time", "tokens_per_second", "lr")
    return {"steps": [{n: v for n, v in row.items() if n not in left} for row in rows]}


@dataclass(frozen=True)
class HeldOut:
    """A trainer over held-out rows that never takes a step."""

    trainer: Any
    rows: Any

    def batches(self) -> Iterator[Any]:
        """Every row once."""
        from luthier.data.loader import in_order

        return in_order(self.rows, self.trainer.source.micro_tokens)

    def judge(self) -> dict[str, float]:
        """Loss and metrics of the config's method."""
        from luthier.evaluate.loss import evaluate_loss

        one = self.trainer
        return evaluate_loss(
            one.policy, one.method, self.batches(), one.cluster, one.device, one.learner.reference
        )


def put_to(config: dict[str, Any], rows: str, scratch: Path, *, learned: bool = True) -> HeldOut:
    """The model of a run, and the rows of a file as its method reads them.

    Args:
        learned: with the weights of the run's last checkpoint; else as it was before.
    """
    import luthier
    from luthier.models.load import load_tokenizer
    from luthier.parallel.cluster import Cluster
    from luthier.runs.folder import RunFolder
    from luthier.training.build import build_data, build_trainer
    from luthier.training.checkpoint import load_weights
    from luthier.training.template import build_template

    data = {key: value for key, value in config["data"].items() if key != "eval_path"} | {"path": rows}
    checked = luthier.check({**config, "data": data, "eval": {"samples": 0}})
    tokenizer, cluster = load_tokenizer(checked.model.name), Cluster()
    template = build_template(checked, tokenizer)
    prepared = build_data(checked, tokenizer, template, cluster, lambda line: None, scratch)
    trainer, prepared, _ = build_trainer(checked, prepared, cluster, lambda line: None)
    if learned:
        folder = RunFolder(Path(config["run"]["root"]) / config["run"]["name"])
        load_weights(trainer.policy.model, folder.checkpoint(folder.saved_steps()[-1]))
    return HeldOut(trainer, prepared.train)

"""What the learning scripts have in common: a quiet run, and a model put to rows that it has not learned."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


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

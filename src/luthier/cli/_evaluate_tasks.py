"""Tasks of lm-eval on the command line."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from luthier.evaluate.variants import Variant


def check(tasks: Sequence[str], data: object, metric: object, compare: bool) -> None:
    """Raises ConfigError where tasks cannot be run."""
    from luthier.evaluate.harness import need_harness

    if data or metric or compare:
        raise ConfigError(
            "--task brings rows and metrics of its own; leave out --data, --metric and --compare"
        )
    need_harness()


def run(
    variant: "Variant", tasks: Sequence[str], rows: int | None, chat: bool, as_json: bool, offline: bool
) -> None:
    """Runs tasks and prints their scores."""
    from luthier.evaluate.harness import run_tasks
    from luthier.models.inference import load_for_inference

    loaded = load_for_inference(variant.name, adapter=variant.trained, offline=offline)
    found = run_tasks(loaded, tasks, limit=rows, chat=chat)
    if as_json:
        print(json.dumps({"tasks": [vars(one) for one in found]}))
        return
    for one in found:
        error = "" if one.error is None else f" (standard error {one.error:.4f})"
        print(f"{one.task}: {one.metric} {one.value:.4f}{error}")

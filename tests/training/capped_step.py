"""Two optimizer steps in a process of their own: one keeps everything, then one is planned.

The second is under a `memory.limit`, or both are under a hard cap of the address space. Run by
test_activation_planner.py. Prints as JSON how each ended, what it took (MiB) and a hash of its gradients.
"""

import argparse
import hashlib
import json
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from luthier.data.batch import collate
from luthier.errors import RunError
from luthier.memory import tree_bytes
from luthier.models.activations.assemble import plan_activations
from luthier.models.activations.gauge import HostGauge
from luthier.models.activations.levels import Level
from luthier.models.activations.plan import Plan
from luthier.models.activations.planner import Mode
from luthier.training.loop import Trainer
from tiny_models import tiny_llama
from training_parts import chat_rows, make_trainer

MIB = 2**20
TOKENS = 6000


def trainer() -> Trainer:
    """A tiny model whose activations take some hundred MiB."""
    model = tiny_llama(
        hidden_size=64, intermediate_size=256, num_hidden_layers=12, max_position_embeddings=4096
    )
    return make_trainer(chat_rows(200, longest=200), model=model, tokens_per_step=TOKENS, micro_tokens=TOKENS)


def clear(trainer: Trainer) -> None:
    for parameter in trainer.parameters:
        if parameter.grad is not None:
            parameter.grad.zero_()


def gradient_hash(trainer: Trainer) -> str:
    found = hashlib.sha256()
    for parameter in trainer.parameters:
        if parameter.grad is not None:
            found.update(parameter.grad.contiguous().numpy().tobytes())
    return found.hexdigest()


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def run(tuned: Trainer, mode: Mode, limit: float | None = None) -> dict[str, object]:
    """One step; `limit` in MiB above what the process holds."""
    clear(tuned)
    batch = tuned.source.step(0)[0]
    most = None if limit is None else (tree_bytes() + limit * MIB) / 2**30
    planner = plan_activations(tuned.policy, tuned.optimizer, mode=mode, limit=most, micro_tokens=TOKENS)
    plans: list[Plan] = []

    def step() -> None:
        with planner.micro_batch(batch.num_tokens):
            assert planner.plan is not None
            plans.append(planner.plan)
            tuned.learner.loss(batch)[0].backward()

    gauge, ended = HostGauge(), "done"
    start = gauge.in_use()
    with gauge.watch() as peak:
        try:
            planner.rerun_if_out_of_memory(step, lambda: clear(tuned))
        except RunError as error:
            ended = type(error).__name__
    return {
        "ended": ended,
        "taken": (peak.bytes - start) / MIB,
        "need": plans[-1].need / MIB,
        "kept": plans[-1].levels.count(Level.KEEP_ALL),
        "tries": len(plans),
        "gradient": gradient_hash(tuned),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--limit", type=float, help="memory.limit of the second step, as a share of the first"
    )
    parser.add_argument("--cap", type=float, help="address space above what the process has, in MiB")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tuned = trainer()
    tuned.policy.train()
    with HostGauge().watch():  # libraries and threads take their own memory in a first pass over a few tokens
        tuned.learner.loss(collate([tuned.source.dataset.example(0)]))[0].backward()
    if given.cap is not None:
        most = address_space() + int(given.cap * MIB)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    first = run(tuned, "keep")
    limit = None if given.limit is None else given.limit * float(str(first["taken"]))
    print(json.dumps([first, run(tuned, "auto", limit)]))


if __name__ == "__main__":
    main()

"""A tiny trainer over rows made up in memory, for tests of the loop."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from head_models import LABELS, tiny_policy
from luthier.config.plugins import load_plugin
from luthier.data.batch import Example, Segment
from luthier.data.loader import StepSource
from luthier.data.other_tokens import OtherTokens, Reading
from luthier.kernels.divergence import Measure, SortedDistance
from luthier.methods.base import Method
from luthier.models.cross_teacher import CrossTeacher
from luthier.models.teacher import Teacher
from luthier.models.tripwire import choose_policy
from luthier.optim.adamw import AdamW
from luthier.optim.schedules import Schedule
from luthier.parallel.cluster import Cluster
from luthier.rollout.native import NativeGenerator
from luthier.training.loop import Trainer
from luthier.training.own_answers import OwnAnswers
from method_rows import judged_rows
from scored_rows import READS, scored_rows
from tiny_models import VOCAB, tiny_llama

ROOT = Path(__file__).resolve().parents[1]


class Rows:
    """Examples as a dataset."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(example) for example in self.examples], dtype=np.int64)

    def example(self, index: int) -> Example:
        return self.examples[index]

    def locate(self, row: int) -> str:
        return f"rows.jsonl:{row + 1}"


def chat_rows(num_rows: int = 24, seed: int = 0, longest: int = 30) -> Rows:
    """Rows of one segment whose second half is learned."""
    draw = np.random.default_rng(seed)
    examples = []
    for row in range(num_rows):
        length = int(draw.integers(4, longest))
        ids = draw.integers(0, VOCAB, length).astype(np.int32)
        weights = (np.arange(length) >= length // 2).astype(np.float32)
        examples.append(Example((Segment(ids, weights),), row=row))
    return Rows(examples)


def rows_for(reads: str, num_rows: int = 24, seed: int = 0) -> Rows:
    """Rows of the kind that a method reads."""
    if reads == "conversation":
        return chat_rows(num_rows, seed)
    if reads in READS:
        return Rows(scored_rows(reads, num_rows, seed))
    return Rows(judged_rows(reads, num_rows, seed))


class SameTokens(OtherTokens):
    """A teacher's tokenizer that is the student's."""

    def __init__(self) -> None:
        pass

    def __call__(self, ids: Sequence[int]) -> Reading:
        return Reading(np.array(ids, np.int32), np.arange(len(ids)))


def make_teacher() -> Teacher:
    """A larger tiny model to learn from. Leaves the global generator as it is."""
    with torch.random.fork_rng():
        return Teacher(choose_policy(tiny_llama(seed=3, hidden_size=48)).policy)


def teacher_for(measure: Measure | None) -> Teacher | CrossTeacher:
    """The same as a method wants it that measures so."""
    teacher = make_teacher()
    if not isinstance(measure, SortedDistance):
        return teacher
    return CrossTeacher(teacher.policy, SameTokens(), min(measure.k, VOCAB), measure.temperature)


def make_trainer(
    rows: Rows | None = None,
    *,
    method: str = "sft",
    options: dict[str, Any] | None = None,
    model: PreTrainedModel | None = None,
    lora: bool = True,
    dropout: float = 0.0,
    steps: int = 8,
    tokens_per_step: int = 128,
    micro_tokens: int = 64,
    lr: float = 1e-2,
    cluster: Cluster | None = None,
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer] | None = None,
    max_grad_norm: float | None = 1.0,
) -> Trainer:
    """A trainer over a tiny model, the same for the same arguments."""
    import luthier.methods

    cluster = cluster or Cluster()
    torch.manual_seed(0)
    chosen: Method = load_plugin(luthier.methods, method)(**(options or {}))
    policy = tiny_policy(chosen.head(LABELS), model, lora, dropout)
    source = StepSource(
        chosen.arrange(rows or rows_for(chosen.reads)),
        tokens_per_step=tokens_per_step,
        micro_tokens=micro_tokens,
        rank=cluster.rank,
        world=cluster.world,
    )
    named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    built = optimizer([p for _, p in named]) if optimizer else AdamW(weight_decay=0.1).build(named, lr)
    trainer = Trainer(
        policy, chosen, source, built, Schedule("cosine", steps, 2), cluster, max_grad_norm=max_grad_norm
    )
    if chosen.teacher_divergence is not None:
        trainer.learner.scorer.teacher = teacher_for(chosen.teacher_divergence)
    if chosen.sampling is not None:
        generator = NativeGenerator(policy.model, eos_token_ids=[2])
        trainer.learner.before_step = OwnAnswers(generator, chosen.sampling, source, seed=0)
    return trainer


def trained_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of everything that is trained."""
    return {n: p.detach().clone() for n, p in trainer.policy.named_parameters() if p.requires_grad}


def reads_of(method: str) -> str:
    """What kind of rows a method learns from."""
    import luthier.methods

    return load_plugin(luthier.methods, method).reads


def arranged_rows(method: str, num_rows: int) -> list[Example]:
    """Rows as a method wants them."""
    import luthier.methods

    chosen: Method = load_plugin(luthier.methods, method)()
    arranged = chosen.arrange(rows_for(chosen.reads, num_rows))
    return [arranged.example(index) for index in range(num_rows)]


def method_names() -> list[str]:
    """Every method there is: a new file is tested by existing."""
    import luthier.methods
    from luthier.config.plugins import describe

    return sorted(describe(luthier.methods))

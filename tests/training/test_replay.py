"""Replaying micro-batches through fixed buffers gives what running each anew gives."""

import pytest
import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.data.loader import StepSource
from luthier.training.graphs import MicroBatches, Replay
from luthier.training.loop import Trainer
from training_parts import chat_rows, make_trainer, trained_weights


def fixed_trainer(lora: bool, dropout: float = 0.0) -> Trainer:
    trainer = make_trainer(lora=lora, dropout=dropout)
    trainer.source = StepSource(chat_rows(40), tokens_per_step=192, micro_tokens=48, fixed_shape=True)
    return trainer


@pytest.mark.parametrize("lora", [True, False])
def test_replayed_steps_are_the_eager_ones(lora: bool) -> None:
    eager, replayed = fixed_trainer(lora, dropout=0.1), fixed_trainer(lora, dropout=0.1)
    said: list[str] = []
    replayed.learner.replay(said.append)
    for trainer in (eager, replayed):
        torch.manual_seed(3)
        trainer.policy.train()
        trainer.values = [trainer.step(trainer.source.step(i)).values for i in range(6)]  # pyright: ignore
    for one, two in zip(eager.values, replayed.values, strict=True):  # pyright: ignore
        assert all(one[n] == pytest.approx(two[n], rel=1e-6) for n in ("loss", "grad_norm", "tokens"))
    for name, weight in trained_weights(eager).items():
        torch.testing.assert_close(weight, trained_weights(replayed)[name], rtol=1e-5, atol=1e-7)
    assert said == [] and len(replayed.learner.micro_batches.replays) == 1


def test_nothing_that_a_graph_would_write_to_or_read_ever_moves() -> None:
    trainer = fixed_trainer(lora=False)
    trainer.learner.replay(print)
    seen: list[list[int]] = []
    compute = trainer.learner.micro_batches.compute

    def watched(batch: Batch) -> None:
        tensors: list[Tensor] = [batch.tokens_T, batch.starts_S1, batch.weight_N, batch.columns["row"]]
        tensors += [
            trainer.learner.units,
            trainer.learner.totals_M,
            *(p.grad for p in trainer.parameters if p.grad is not None),
        ]
        seen.append([tensor.data_ptr() for tensor in tensors])
        compute(batch)

    trainer.learner.micro_batches.compute = watched
    for step in range(4):
        trainer.step(trainer.source.step(step))
    assert len(seen) > 8 and len(seen[0]) == 6 + len(trainer.parameters)
    assert all(places == seen[0] for places in seen)


def test_what_cannot_be_recorded_runs_as_it_is_and_says_why() -> None:
    eager, trainer = fixed_trainer(True), fixed_trainer(True)
    said: list[str] = []
    trainer.learner.replay(said.append)

    def fails(compute: object, batch: Batch, device: torch.device) -> Replay:
        trainer.learner._learn(batch)  # a warm-up that leaves gradients and draws random numbers behind
        torch.rand(5)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    trainer.learner.micro_batches.make = fails
    state = torch.get_rng_state()
    one, two = (t.step(t.source.step(0)).values for t in (eager, trainer))
    assert one["loss"] == two["loss"] and one["grad_norm"] == two["grad_norm"]
    reason = "RuntimeError: operation not permitted when stream is capturing"
    assert said == [f"micro-batches are not replayed ({reason})"]
    assert torch.equal(torch.get_rng_state(), state)
    trainer.step(trainer.source.step(1))
    assert len(said) == 1


def test_shapes_beyond_a_few_run_as_they_come() -> None:
    ran: list[int] = []
    micro = MicroBatches(lambda batch: ran.append(batch.num_tokens), torch.device("cpu"))
    micro.replay(lambda: None, print)
    batches = StepSource(chat_rows(40), tokens_per_step=40 * 30, micro_tokens=30).step(0)
    micro(batches)
    assert ran == [batch.num_tokens for batch in batches] and len(micro.replays) == 4

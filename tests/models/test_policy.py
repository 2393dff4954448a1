"""Law 1: packed = one document at a time = padded, for loss and every gradient, on every family and layout."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from luthier.data.batch import Batch, Example, Segment, collate
from luthier.errors import ModelError
from luthier.models.policy import Layout, Policy
from luthier.models.tripwire import choose_policy
from tiny_models import FAMILIES, OTHERS, VOCAB, build, tiny_granite, tiny_llama

ALL = {**FAMILIES, **OTHERS}


def segment(draw: np.random.Generator, length: int, parent: int = -1, learned: float = 0.6) -> Segment:
    ids = draw.integers(0, VOCAB, length).astype(np.int32)
    return Segment(ids, (draw.random(length) < learned).astype(np.float32), parent)


def documents(seed: int = 0) -> list[Example]:
    """Single documents, some longer than the tiny models' sliding window."""
    draw = np.random.default_rng(seed)
    return [Example((segment(draw, n),), row=i) for i, n in enumerate((9, 14, 2, 21, 5))]


def forest(seed: int = 0) -> list[Example]:
    """A pair, a group of three with a deeper branch, and a single document."""
    draw = np.random.default_rng(seed)
    pair = (segment(draw, 8, learned=0.2), segment(draw, 5, 0), segment(draw, 4, 0))
    group = (
        segment(draw, 11, learned=0.0),
        segment(draw, 3, 0),
        segment(draw, 6, 0, learned=0.0),
        segment(draw, 4, 2),
        segment(draw, 5, 2),
    )
    return [Example(pair, row=0), Example((segment(draw, 7),), row=1), Example(group, row=2)]


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def nll(policy: Policy, batch: Batch) -> torch.Tensor:
    return -(batch.weight_N * policy(batch)).sum()


def plain_loss(model: PreTrainedModel, examples: list[Example]) -> torch.Tensor:
    """The oracle: transformers' own logits, one root-to-leaf document at a time, nothing of Luthier's in it."""
    total = torch.zeros((), dtype=model.dtype)
    for example in examples:
        parents = [s.parent for s in example.segments]
        counted: set[int] = set()
        for leaf in sorted(set(range(len(parents))) - set(parents)):
            path = [leaf]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            path.reverse()
            ids = torch.tensor(np.concatenate([example.segments[s].ids for s in path])).long()
            weights = [
                example.segments[s].weights if s not in counted else 0 * example.segments[s].weights
                for s in path
            ]
            counted |= set(path)
            logp = torch.log_softmax(model(ids[None]).logits[0], -1)
            picked = logp[:-1].gather(1, ids[1:, None])[:, 0]
            total = total - (torch.tensor(np.concatenate(weights))[1:].to(logp.dtype) * picked).sum()
    return total


def relative(ours: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == truth.keys()
    return max(float((ours[n] - truth[n]).norm() / truth[n].norm().clamp_min(1e-30)) for n in truth)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layout", ["packed", "rows", "plain"])
@pytest.mark.parametrize("make", [documents, forest])
def test_every_layout_equals_one_document_at_a_time(
    name: str, layout: Layout, make: Callable[[], list[Example]]
) -> None:
    examples = make()
    model = ALL[name]().double()
    truth_loss = plain_loss(model, examples)
    truth = gradients(model, truth_loss)
    chosen = choose_policy(model, packing=None if layout == "packed" else False).policy
    policy = chosen if layout != "plain" else Policy(model, "plain")
    assert policy.layout == layout
    loss = nll(policy, collate(examples))
    torch.testing.assert_close(loss.double(), truth_loss, rtol=1e-9, atol=0)
    assert relative(gradients(model, loss), truth) <= 1e-6


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("make", [documents, forest])
def test_in_fp32_the_whole_gradient_is_within_a_millionth(
    name: str, make: Callable[[], list[Example]]
) -> None:
    """Single tensors may be a little farther off: they are small, and fp32 rounds at 6e-8."""
    examples, model = make(), ALL[name]()
    truth_loss = plain_loss(model, examples)
    truth = gradients(model, truth_loss)
    loss = nll(choose_policy(model).policy, collate(examples))
    torch.testing.assert_close(loss, truth_loss, rtol=1e-6, atol=0)
    ours = gradients(model, loss)
    difference = torch.stack([(ours[n] - truth[n]).norm() for n in truth]).norm()
    assert float(difference) <= 1e-6 * float(torch.stack([g.norm() for g in truth.values()]).norm())


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_padded(name: str) -> None:
    examples, model = documents(), FAMILIES[name]()
    length = max(len(e) for e in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.int64)
    mask, weight = torch.zeros_like(ids), torch.zeros(len(examples), length)
    for row, example in enumerate(examples):
        (only,) = example.segments
        ids[row, : len(only.ids)] = torch.tensor(only.ids)
        mask[row, : len(only.ids)] = 1
        weight[row, : len(only.ids)] = torch.tensor(only.weights)
    logp = torch.log_softmax(model(ids, attention_mask=mask).logits, -1)
    picked = logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    truth = gradients(model, -(weight[:, 1:] * picked).sum())
    policy = choose_policy(model).policy
    batch = collate(examples)
    assert relative(gradients(model, nll(policy, batch)), truth) <= 1e-5
    linear, _ = policy.linear_loss(batch, -batch.weight_N)
    assert relative(gradients(model, linear), truth) <= 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_order_of_documents_does_not_matter(name: str) -> None:
    model = FAMILIES[name]()
    policy = choose_policy(model).policy
    one = gradients(model, nll(policy, collate(documents())))
    other = gradients(model, nll(policy, collate(documents()[::-1])))
    assert relative(one, other) <= 1e-5


def test_families_take_the_fast_path() -> None:
    for name, make in ALL.items():
        choice = choose_policy(make())
        assert choice.policy.layout == "packed", (name, choice.reasons)


def test_logit_scale_that_a_family_multiplies_by_is_found() -> None:
    model = tiny_granite(logits_scaling=4.0)
    assert choose_policy(model).policy.head.shape.scale == pytest.approx(0.25)


def test_recurrent_model_falls_back_to_rows() -> None:
    model = build("mamba", state_size=4, conv_kernel=4, expand=2, time_step_rank=4)
    choice = choose_policy(model)
    assert choice.policy.layout == "rows" and any("packed" in reason for reason in choice.reasons)
    examples = documents()
    truth = gradients(model, plain_loss(model, examples))
    assert relative(gradients(model, nll(choice.policy, collate(examples))), truth) <= 1e-5
    with pytest.raises(ModelError, match=r"model\.packing is true, but this model gives other numbers"):
        choose_policy(model, packing=True)


def test_model_whose_logits_come_from_elsewhere_falls_back_to_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama()
    head = model.lm_head
    real = head.forward
    monkeypatch.setattr(head, "forward", lambda hidden: real(hidden).flip(-1))
    choice = choose_policy(model)
    assert choice.policy.layout == "plain" and "rows: log-probabilities differ" in " ".join(choice.reasons)


def test_no_layout_leaks_between_documents() -> None:
    for make in FAMILIES.values():
        policy = choose_policy(make()).policy
        first, second = documents()[:2]
        changed = Example((Segment((first.segments[0].ids + 1) % VOCAB, first.segments[0].weights),), row=0)
        mask = collate([first, second]).sequence_N == 1
        with torch.no_grad():
            alone = policy(collate([first, second]))[mask]
            beside_other = policy(collate([changed, second]))[mask]
        assert torch.equal(alone, beside_other)

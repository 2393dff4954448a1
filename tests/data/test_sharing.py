"""Common beginnings laid out once: the same documents, the same predictions, fewer tokens."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from luthier.data.batch import Batch, Example, Segment, collate
from luthier.data.sharing import MIN_SHARED, num_logical_tokens, share_prefixes
from luthier.models.policy import Policy
from tiny_models import tiny_gemma2, tiny_qwen3

SYSTEM, TOOLS = list(range(20)), list(range(40, 65))


def row(*ids: int, children: tuple[tuple[int, ...], ...] = (), number: int = 0) -> Example:
    weights = np.array([i % 3 > 0 for i in range(len(ids))], np.float32)
    root = Segment(np.array(ids, np.int32), weights)
    below = [Segment(np.array(child, np.int32), np.ones(len(child), np.float32), 0) for child in children]
    return Example((root, *below), row=number)


def documents(batch: Batch) -> list[list[int]]:
    """The tokens of every sequence from its root on."""
    starts = batch.starts_S1.tolist()
    return [
        [int(t) for s in path for t in batch.tokens_T[starts[s] : starts[s + 1]]] for path in batch.paths()
    ]


def predictions(batch: Batch) -> list[tuple[int, list[int], int, float]]:
    """For each prediction its sequence, all that it may see, its target and its weight."""
    starts, found = batch.starts_S1.tolist(), []
    columns = (batch.sequence_N, batch.source_N, batch.target_N, batch.weight_N)
    for sequence, source, target, weight in zip(*(column.tolist() for column in columns), strict=True):
        stream = [i for s in batch.paths()[sequence] for i in range(starts[s], starts[s + 1])]
        seen = stream[: stream.index(source) + 1]
        found.append((sequence, batch.tokens_T[seen].tolist(), target, weight))
    return found


def check_same(batch: Batch) -> Batch:
    shared = share_prefixes(batch)
    assert documents(shared) == documents(batch)
    assert predictions(shared) == predictions(batch)
    assert num_logical_tokens(shared) == num_logical_tokens(batch)
    starts = shared.starts_S1.tolist()
    for path in shared.paths():
        positions = [int(p) for s in path for p in shared.positions_T[starts[s] : starts[s + 1]]]
        assert positions == list(range(len(positions)))
    assert all(parent < segment for segment, parent in enumerate(shared.parent_S.tolist()))
    assert all(size > 0 for size in shared.starts_S1.diff())
    assert torch.equal(shared.columns["row"], batch.columns["row"])
    return shared


def test_nested_beginnings_are_laid_out_once() -> None:
    rows = [row(*SYSTEM, 70, 71), row(*SYSTEM, *TOOLS, 72), row(5, 6, 7), row(*SYSTEM, *TOOLS, 73, 74)]
    shared = check_same(collate(rows))
    assert shared.num_tokens == len(SYSTEM) + len(TOOLS) + 2 + 1 + 3 + 2
    assert shared.parent_S.tolist() == [-1, 0, 0, 1, -1, 1]


def test_equal_documents_keep_a_token_of_their_own() -> None:
    shared = check_same(collate([row(*SYSTEM), row(*SYSTEM), row(*SYSTEM, 9)]))
    assert shared.num_tokens == 19 + 1 + 1 + 2


def test_short_beginnings_and_small_savings_stay_as_they_are() -> None:
    short = collate([row(*SYSTEM[: MIN_SHARED - 1], 70), row(*SYSTEM[: MIN_SHARED - 1], 71)])
    assert share_prefixes(short) is short
    long = list(np.random.default_rng(0).integers(0, 97, 2000))
    small = collate([row(*SYSTEM, *long), row(*SYSTEM, 71)])
    assert share_prefixes(small) is small


def test_answers_stay_with_their_prompts() -> None:
    pairs = [
        row(*SYSTEM, 70, children=((1, 2), (3,))),
        row(*SYSTEM, 71, 72, children=((4,), (5, 6)), number=1),
    ]
    assert check_same(collate(pairs)).num_tokens == 20 + 1 + 3 + 2 + 3


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 40), st.lists(st.integers(0, 2), max_size=30), st.booleans()
        ),
        min_size=1,
        max_size=9,
    )
)
def test_any_rows(made: list[tuple[int, int, list[int], bool]]) -> None:
    rows = []
    for number, (kind, cut, rest, answers) in enumerate(made):
        ids = [*([kind] * 30 + [kind % 2] * 30)[:cut], *rest] or [7]
        rows.append(row(*ids, children=((1, 2), (3,)) if answers else (), number=number))
    check_same(collate(rows))


@pytest.mark.parametrize("build", [tiny_qwen3, tiny_gemma2])
def test_shared_is_unshared_in_loss_and_gradient(build: Callable[[], PreTrainedModel]) -> None:
    policy = Policy(build().requires_grad_(True))
    batch = collate(
        [row(*SYSTEM, 70, 71, 3), row(*SYSTEM, *TOOLS, 72, 5), row(5, 6, 7), row(*SYSTEM, *TOOLS, 73, 74)]
    )
    results = []
    for way in (batch, share_prefixes(batch)):
        policy.zero_grad()
        logp_N = policy(way)
        (logp_N * torch.linspace(0.5, 1.5, len(logp_N))).sum().backward()
        gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        results.append((logp_N.detach(), gradients))
    (logp, gradients), (shared_logp, shared_gradients) = results
    torch.testing.assert_close(shared_logp, logp, rtol=2e-6, atol=2e-6)
    for name, gradient in gradients.items():
        assert (shared_gradients[name] - gradient).norm() <= 5e-6 * gradient.norm(), name

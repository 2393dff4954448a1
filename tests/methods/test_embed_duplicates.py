"""Equal texts are no negatives of each other: InfoNCE written out, and equal names for equal tokens only."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import luthier.methods
from luthier.config.plugins import load_plugin
from luthier.data.batch import Batch, Example, Segment, collate
from luthier.data.encode_scored import QUERY
from luthier.data.sharing import share_prefixes
from luthier.methods import _step_vectors
from luthier.methods.base import Scores

TEXTS = {"a": [5, 6, 7], "b": [5, 6], "c": [7, 6, 5], "d": [9], "q": [3, 3], "r": [4], "s": [3, 3, 3]}


def row(number: int, query: str, positive: str, *negatives: str) -> Example:
    names = (query, positive, *negatives)
    segments = [Segment(np.array(TEXTS[n], np.int32), np.zeros(len(TEXTS[n]), np.float32)) for n in names]
    return Example(tuple(segments), number, {"relevance": (QUERY, 1.0, *[0.0] * len(negatives))})


ROWS = [row(0, "q", "a", "d"), row(1, "r", "a", "b"), row(2, "q", "c"), row(3, "s", "b", "a")]
# texts in order: a d | a b | c | b a
COMPARED = {0: (0, [1, 3, 5]), 1: (2, [1, 3, 4, 5]), 2: (4, [1, 3, 5]), 3: (5, [0, 1, 2, 4, 6])}
"""For each query its own text, and those that are negatives: rows 0 and 2 ask the same."""


def vectors_of(batch: Batch) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch.num_sequences, 4, generator=generator, dtype=torch.float64)


def test_the_loss_leaves_equal_texts_and_answers_to_equal_queries_out() -> None:
    method, batch = load_plugin(luthier.methods, "embed")(temperature=0.5), collate(ROWS)
    values = vectors_of(batch).requires_grad_()
    none = torch.zeros(0)
    step = method.statistics(method.preview(Scores(none, values=values.detach()), batch), None)
    loss, metrics = method.loss(Scores(none, values=values, step=step), batch)
    unit, is_query = F.normalize(values, dim=-1), batch.columns["relevance"] == QUERY
    logits = unit[is_query] @ unit[~is_query].T / 0.5
    truth, right = torch.zeros((), dtype=torch.float64), 0
    for query, (own, others) in COMPARED.items():
        chosen = logits[query][[own, *others]]
        truth = truth - chosen.log_softmax(0)[0]
        right += int(chosen.argmax() == 0)
    torch.testing.assert_close(loss, truth)
    for found, wanted in zip(
        torch.autograd.grad(loss, values), torch.autograd.grad(truth, values), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert float(metrics["accuracy"]) == right


@pytest.mark.parametrize("shared", [False, True])
def test_names_are_those_of_the_tokens(shared: bool) -> None:
    batch = collate(ROWS)
    names = _step_vectors.names(share_prefixes(batch) if shared else batch.padded(40, 3, 20)).tolist()
    texts = ["q", "a", "d", "r", "a", "b", "q", "c", "s", "b", "a"]
    known = dict(zip(texts, names, strict=False))
    assert [known[text] for text in texts] == names[: len(texts)]
    assert len(set(known.values())) == len(known) and max(names) < 2**52
    assert all(math.floor(float(name)) == name for name in names)

"""Rows as each method reads them, and every method with each of its variants: for tests that hold for all of them."""

from typing import Any

import numpy as np

from luthier.data.batch import Example, Segment
from tiny_models import VOCAB

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"label_smoothing": 0.1, "z_loss": 0.01}, {"token_metrics": True}],
    "focal": [{"gamma": 0.5}],
    "eaft": [{"alpha": 0.4}],
    "dpo": [
        {"loss_type": "hinge"},
        {"loss_type": "ipo"},
        {"loss_type": "exo_pair", "label_smoothing": 0.01},
        {"loss_type": "nca_pair"},
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"loss_type": "bco_pair"},
        {"loss_type": "sppo_hard"},
        {"loss_type": "aot", "label_smoothing": 0.1},
        {"loss_type": "aot_pair"},
        {"loss_type": "apo_zero"},
        {"loss_type": "apo_down"},
        {"loss_type": "discopop"},
        {"loss_type": "sigmoid_norm"},
        {"loss_type": "sigmoid", "label_smoothing": 0.2},
        {"loss_type": ["sigmoid", "sft", "bco_pair"], "loss_weights": [0.8, 1.0, 0.2]},
        {"divergence": "forward_kl"},
        {"divergence": "js"},
        {"divergence": "alpha", "alpha": 0.7},
        {"ld_alpha": 0.3},
        {"wpo": True, "loss_type": "hinge"},
        {"token_metrics": True, "wpo": True},
    ],
    "distill": [
        {"alpha": 1.0, "beta": 1.0},
        {"alpha": 0.5, "beta": 0.4, "temperature": 2.0},
    ],
    "gkd": [{"lmbda": 0.0, "beta": 0.0}],
    "uld": [{"weight": 0.5, "top_k": 8, "temperature": 1.5}],
    "kto": [
        {"loss_type": "apo_zero_unpaired"},
        {"desirable_weight": 1.3, "undesirable_weight": 0.6},
        {"token_metrics": True},
    ],
    "cpo": [{"loss_type": "hinge", "nll_weight": 0.5}, {"loss_type": "ipo"}, {"label_smoothing": 0.1}],
    "tpo": [
        {"loss_type": "tpo_l", "label_smoothing": 0.1},
        {"loss_type": "hinge", "nll_weight": 0.5},
        {"loss_type": "ipo"},
    ],
    "dpo_ranking": [{"loss_type": "pairwise"}],
    "reward": [{"center": 0.1}],
    "classify": [{"label_smoothing": 0.1}],
    "regress": [{"huber": 0.5}],
    "rerank": [{"loss_type": "listwise"}],
    "embed": [{"dims": [2, 4]}, {"pooling": "mean", "temperature": 0.2}],
    "simpo": [{"alpha": 0.25}, {"nll_weight": 0.5, "label_smoothing": 0.1}],
}
"""Settings of a method beside its defaults that lead through other code."""


def all_variants() -> list[tuple[str, dict[str, Any]]]:
    """Every method with its defaults, then with each of its variants."""
    from training_parts import method_names

    names = method_names()
    assert VARIANTS.keys() <= set(names)
    return [(name, options) for name in names for options in ({}, *VARIANTS.get(name, []))]


def variant_id(variant: tuple[str, dict[str, Any]]) -> str:
    """A short name for a parametrised test."""
    name, options = variant
    return "-".join([name, *(str(value) for value in options.values())]).replace(" ", "")


def judged_rows(reads: str, num_rows: int = 24, seed: int = 0) -> list[Example]:
    """Random rows of a prompt with answers of unequal lengths: pairs, triples, one or two answers with labels, or
    two to four with ranks, some of them equal."""
    draw = np.random.default_rng([seed, 7])
    rows = []
    for number in range(num_rows):
        ids = _ids(draw, 2, 12)
        prompt = Segment(ids, np.zeros(len(ids), np.float32))
        num_answers = 2 if reads == "pair" else int(draw.integers(*((1, 3) if reads == "label" else (2, 5))))
        num_answers = 3 if reads == "triple" else num_answers
        answers = []
        for _ in range(num_answers):
            ids = _ids(draw, 1, 9)
            answers.append(Segment(ids, np.ones(len(ids), np.float32), parent=0))
        columns: dict[str, float | tuple[float, ...]] = {}
        if reads == "label":
            columns["label"] = tuple(float(draw.random() < 0.5) for _ in answers)
        if reads == "ranking":
            better = 1 + np.cumsum(draw.random(num_answers) < 0.8)
            columns["rank"] = (1.0, *map(float, better[1:]))
        rows.append(Example((prompt, *answers), row=number, columns=columns))
    return rows


def _ids(draw: np.random.Generator, least: int, most: int) -> np.ndarray:
    return draw.integers(3, VOCAB, int(draw.integers(least, most + 1))).astype(np.int32)


def apart(example: Example) -> Example:
    """The same row with its prompt laid out again before each answer: nothing is shared."""
    if all(segment.parent < 0 for segment in example.segments):
        return example
    prompt, *answers = example.segments
    documents = [
        Segment(np.concatenate([prompt.ids, a.ids]), np.concatenate([prompt.weights, a.weights]))
        for a in answers
    ]
    return Example(tuple(documents), row=example.row, columns=example.columns)

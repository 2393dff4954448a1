"""Losses, gradients and metrics are those of TRL's own functions on the same log-probabilities.

TRL is asked in a process of the peers' environment (bench/.venv-peers), where there is one.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import luthier.methods
from luthier.config.plugins import load_plugin
from luthier.data.batch import Batch, Example, Segment, collate
from luthier.methods.base import Scores

PEERS = Path(__file__).resolve().parents[2] / "bench" / ".venv-peers" / "bin" / "python"
LENGTHS = [3, 5, 2, 7, 4, 4, 6, 1]  # chosen answers of four pairs, then rejected ones
BEST = [
    4,
    4,
    4,
    4,
]  # answers to imitate; TRL's mean is over tokens, ours over answers, so they are of one length
LABELS = [True, False, True, True, False, False, True, False]
KL = [0.3, 0.9, -0.2, 0.1, 0.4, 0.2, 0.1, 0.6]

SAME_NAME = (
    "hinge",
    "ipo",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ("dpo", {}, {"loss_types": ["sigmoid"]}),
    **{name: ("dpo", {"loss_type": name}, {"loss_types": [name]}) for name in SAME_NAME},
    "aot_pair": ("dpo", {"loss_type": "aot_pair"}, {"loss_types": ["aot_unpaired"]}),
    "aot-smooth": (
        "dpo",
        {"loss_type": "aot", "label_smoothing": 0.2},
        {"loss_types": ["aot"], "label_smoothing": 0.2},
    ),
    "exo": (
        "dpo",
        {"loss_type": "exo_pair", "label_smoothing": 0.01, "beta": 0.3},
        {"loss_types": ["exo_pair"], "label_smoothing": 0.01, "beta": 0.3},
    ),
    "robust": (
        "dpo",
        {"loss_type": "robust", "label_smoothing": 0.1},
        {"loss_types": ["robust"], "label_smoothing": 0.1},
    ),
    "sum": (
        "dpo",
        {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]},
        {"loss_types": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]},
    ),
    "forward_kl": ("dpo", {"divergence": "forward_kl"}, {"loss_types": ["sigmoid"], "f_divergence_type": "forward_kl"}),
    "js": ("dpo", {"divergence": "js"}, {"loss_types": ["sigmoid"], "f_divergence_type": "js_divergence"}),
    "alpha": ("dpo", {"divergence": "alpha"}, {"loss_types": ["sigmoid"], "f_divergence_type": "alpha_divergence"}),
    "ld": ("dpo", {"ld_alpha": 0.3}, {"loss_types": ["sigmoid"], "ld_alpha": 0.3}),
    "wpo": ("dpo", {"wpo": True}, {"loss_types": ["sigmoid"], "use_weighting": True}),
    "wpo-sum": (
        "dpo",
        {"wpo": True, "loss_type": ["nca_pair", "sigmoid"], "beta": 0.3},
        {"loss_types": ["nca_pair", "sigmoid"], "beta": 0.3, "use_weighting": True},
    ),
    "kto": (
        "kto",
        {"desirable_weight": 1.2, "undesirable_weight": 0.7},
        {"loss_type": "kto", "desirable_weight": 1.2, "undesirable_weight": 0.7},
    ),
    "apo_zero_unpaired": ("kto", {"loss_type": "apo_zero_unpaired"}, {"loss_type": "apo_zero_unpaired"}),
    "cpo": ("cpo", {"nll_weight": 0.0, "label_smoothing": 0.1}, {"loss_type": "sigmoid", "label_smoothing": 0.1}),
    "cpo-hinge": ("cpo", {"nll_weight": 0.0, "loss_type": "hinge"}, {"loss_type": "hinge"}),
    "cpo-ipo": ("cpo", {"nll_weight": 0.0, "loss_type": "ipo"}, {"loss_type": "ipo"}),
    "simpo": ("simpo", {}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}),
    "alphapo": ("simpo", {"alpha": 0.25}, {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "alpha": 0.25}),
    "tpo": ("tpo", {}, {"loss_type": "sigmoid", "beta": 0.01, "tpo_alpha": 1.0}),
    "tpo-smooth": (
        "tpo",
        {"beta": 0.2, "nll_weight": 0.3, "label_smoothing": 0.1},
        {"loss_type": "sigmoid", "beta": 0.2, "tpo_alpha": 0.3, "label_smoothing": 0.1},
    ),
    "tpo_l": (
        "tpo",
        {"loss_type": "tpo_l", "beta": 2.0},
        {"loss_type": "tpo-l", "beta": 2.0, "tpo_alpha": 1.0, "tpo_l_gamma": 0.5},
    ),
    "tpo-ipo": ("tpo", {"loss_type": "ipo", "beta": 0.3}, {"loss_type": "ipo", "beta": 0.3, "tpo_alpha": 1.0}),
    "tpo-hinge": (
        "tpo",
        {"loss_type": "hinge", "nll_weight": 0.5},
        {"loss_type": "hinge", "beta": 0.01, "tpo_alpha": 0.5},
    ),
    "orpo": ("orpo", {"beta": 0.5}, {"beta": 0.5}),
}  # fmt: skip
"""By name: the method, its options here, and TRL's."""


def lengths_of(method: str) -> list[int]:
    return [*LENGTHS, *BEST] if method == "tpo" else LENGTHS


def tables(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of model and reference, [rows, tokens], 0 where an answer has ended."""
    draw = np.random.default_rng(3)
    inside = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    logp = -draw.gamma(2.0, 0.6, inside.shape) * inside
    return logp.astype(np.float32), ((logp + draw.normal(0, 0.5, inside.shape) * inside).clip(max=0)).astype(
        np.float32
    )


def log_squares(lengths: list[int]) -> np.ndarray:
    """Log of the summed squares of the model's distribution at each token, [rows, tokens]."""
    return -np.random.default_rng(4).gamma(1.0, 0.7, (len(lengths), max(lengths))).astype(np.float32)


@pytest.fixture(scope="module")
def trl_answers() -> dict[str, dict[str, Any]]:
    """TRL's answer to each case."""
    asked = []
    for method, _, trl_settings in CASES.values():
        settings = {"loss_weights": [1.0] * len(trl_settings.get("loss_types", [])), **trl_settings}
        lengths = lengths_of(method)
        logp, reference = (table.tolist() for table in tables(lengths))
        common = {"logp": logp, "reference": reference, "lengths": lengths, "labels": LABELS, "kl": KL}
        common["log_squares"] = log_squares(lengths).tolist()
        kind = "cpo" if method == "simpo" else method
        asked.append({"kind": kind, "settings": settings, "mean": method in ("simpo", "orpo"), **common})
    worker = Path(__file__).with_name("trl_worker.py")
    done = subprocess.run(
        [str(PEERS), str(worker)], input=json.dumps(asked), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def batch_of(reads: str) -> tuple[Batch, list[int]]:
    """The same answers as a batch, and for each sequence its row in the tables."""
    half = len(LENGTHS) // 2
    groups = [[row] for row in range(2 * half)]
    if reads in ("pair", "triple"):
        groups = [[*[2 * half + pair] * (reads == "triple"), pair, pair + half] for pair in range(half)]
    lengths = [*LENGTHS, *BEST]
    labels = dict(enumerate(LABELS))
    prompt, examples = Segment(np.array([1], np.int32), np.zeros(1, np.float32)), []
    for number, group in enumerate(groups):
        answers = [
            Segment(np.full(lengths[row], 5, np.int32), np.ones(lengths[row], np.float32), 0) for row in group
        ]
        examples.append(
            Example((prompt, *answers), number, {"label": tuple(float(labels.get(row, 1)) for row in group)})
        )
    return collate(examples), [row for group in groups for row in group]


def ours(name: str) -> tuple[float, np.ndarray, dict[str, float]]:
    method_name, options, _ = CASES[name]
    method: Any = load_plugin(luthier.methods, method_name)(**options)
    batch, order = batch_of(method.reads)
    lengths = lengths_of(method_name)
    places = [(order[q], t) for q in range(len(order)) for t in range(lengths[order[q]])]
    index_N = torch.tensor([row * max(lengths) + t for row, t in places])
    table, reference = (torch.tensor(part) for part in tables(lengths))
    table.requires_grad_()
    logp_N, reference_N = table.flatten()[index_N], reference.flatten()[index_N]
    step: Tensor | None = None
    if method_name == "kto" and method.looks_ahead:
        step = method.statistics(torch.tensor(KL, dtype=torch.float64)[:, None], None)
    elif method.looks_ahead:
        step = method.statistics(method.preview(Scores(logp_N.detach(), reference_N), batch), None)
    more = {"log_squares": torch.tensor(log_squares(lengths)).flatten()[index_N]}
    loss, metrics = method.loss(Scores(logp_N, reference_N, step, distribution=more), batch)
    count = method.count(batch)
    value = loss / count
    value.backward()
    assert table.grad is not None
    if method_name == "orpo":  # TRL's function is the odds ratio alone; take the likelihood away again
        chosen = (table[:4].sum(1) / torch.tensor(LENGTHS[:4])).mean()
        value = value.detach() + chosen.detach()
        table.grad += torch.autograd.grad(chosen, table)[0]
    means = {n: v.item() / count for n, v in {"loss": loss, **metrics}.items()}
    return float(value), table.grad.numpy(), method.report(means)


@pytest.mark.skipif(not PEERS.exists(), reason="no peers' environment (bench/peers.txt)")
@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_metrics_are_trls(name: str, trl_answers: dict[str, dict[str, Any]]) -> None:
    theirs = trl_answers[name]
    loss, gradient, metrics = ours(name)
    assert loss == pytest.approx(theirs["loss"], rel=1e-5, abs=1e-6)
    lengths = lengths_of(CASES[name][0])
    inside = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    their_gradient = np.array(theirs["gradient"]) * inside
    assert np.abs(their_gradient).max() > 1e-4
    np.testing.assert_allclose(gradient * inside, their_gradient, rtol=2e-4, atol=2e-6)
    shown = {n: v for n, v in theirs["metrics"].items() if n.startswith(("rewards/", "logps/")) or n == "kl"}
    for metric, value in shown.items():
        assert metrics[metric] == pytest.approx(value, rel=1e-5, abs=1e-6), metric
    assert len(shown) >= 5 or CASES[name][0] not in ("dpo", "kto")

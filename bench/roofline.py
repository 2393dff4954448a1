"""The limit: how fast a machine could train, from the rates at which it multiplies matrices and moves bytes.

Time per token = floating-point operations of the matrix products ÷ their rate + bytes of everything else ÷ bandwidth.
The operations are those that cannot be left out: nothing recomputed, no padding, logits of learned tokens only.
The bytes are those of fused elementwise passes. Formulas and symbols: docs/performance.md.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.rows import Rows
from bench.shapes import Shape


@dataclass(frozen=True)
class Work:
    """What a set of rows asks for, per token."""

    attended: float
    """Mean over tokens of the length of their document: the S of the attention term."""
    learned: float
    """Share of tokens that are predicted."""


@dataclass(frozen=True)
class Rates:
    """What the machine does, measured: operations a second by kind of product, bytes a second read and written."""

    forward: float
    input_gradient: float
    weight_gradient: float
    bandwidth: float
    element: int
    """Bytes of one activation."""


@dataclass(frozen=True)
class Cost:
    """Of one token: operations by kind of product, bytes of elementwise passes, weights apart."""

    forward: float
    input_gradient: float
    weight_gradient: float
    elements: float

    @property
    def operations(self) -> float:
        return self.forward + self.input_gradient + self.weight_gradient


def work_of(rows: Rows) -> Work:
    """The work of rows with one answer each, or of prompts with several, each answer a document of its own."""
    prompt, answers = rows.lengths[:, :1], rows.lengths[:, 1:]
    documents: NDArray[np.int64] = (prompt + answers).ravel()
    return Work(
        attended=float((documents.astype(float) ** 2).sum() / documents.sum()),
        learned=float(answers.sum() / documents.sum()),
    )


def training_cost(shape: Shape, work: Work, rank: int | None, *, recompute: bool = False) -> Cost:
    """One token of training; `rank` None: all weights are trained.

    Attention: a causal forward is 2·n_h·d·S operations a layer, its backward 2.5 times that. Adapters: 6 P_A,
    two thirds of it on the way back.
    """
    linear, head = 2.0 * shape.body, 2.0 * shape.vocabulary * shape.hidden * work.learned
    attention = 2.0 * shape.heads * shape.head_size * work.attended * shape.layers
    forward, back, weights = linear + attention + head, linear + 2.5 * attention + head, 0.0
    if rank is None:
        weights = linear + head
    else:
        adapter = 2.0 * shape.adapter(rank)
        forward, back = forward + adapter, back + 2 * adapter
    if recompute:
        forward += linear + attention
    elements = shape.layers * (fused_elements(shape) + (adapter_elements(shape) if rank else 0))
    return Cost(forward, back, weights, elements)


def fused_elements(shape: Shape) -> float:
    """Elements read and written per token and layer by fused norms, rotary, gated product and residuals."""
    rotated = (shape.heads + shape.kv_heads) * shape.head_size
    return 9.0 * shape.intermediate + 16.0 * shape.hidden + 4.0 * rotated


def adapter_elements(shape: Shape) -> float:
    """Elements per token and layer that adapters read when they share their inputs (K-concat, grouped A)."""
    query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    inputs = 2.0 * shape.hidden + query + shape.intermediate
    outputs = query + 2.0 * key + 2.0 * shape.hidden + 2.0 * shape.intermediate
    return 2 * inputs + outputs


def seconds_per_token(cost: Cost, rates: Rates) -> float:
    """The additive roofline."""
    products = (
        cost.forward / rates.forward
        + cost.input_gradient / rates.input_gradient
        + (cost.weight_gradient / rates.weight_gradient if cost.weight_gradient else 0.0)
    )
    return products + cost.elements * rates.element / rates.bandwidth


def optimizer_seconds(shape: Shape, rank: int | None, rates: Rates) -> float:
    """One pass of AdamW over fp32 weights: gradient, weight and two moments read, the last three written."""
    trained = shape.weights if rank is None else shape.adapter(rank)
    return trained * 28.0 / rates.bandwidth


def training_limit(shape: Shape, rows: Rows, rank: int | None, tokens_per_step: float, rates: Rates) -> float:
    """Tokens a second at the limit."""
    per_token = seconds_per_token(training_cost(shape, work_of(rows), rank), rates)
    return 1.0 / (per_token + optimizer_seconds(shape, rank, rates) / tokens_per_step)


def decode_limit(shape: Shape, batch: int, rates: Rates) -> float:
    """Tokens a second of generation at the limit: each step reads all weights once and multiplies them."""
    products = 2.0 * (shape.body + shape.vocabulary * shape.hidden) * batch / rates.forward
    read = (shape.body + shape.vocabulary * shape.hidden) * rates.element / rates.bandwidth
    return batch / max(products, read)

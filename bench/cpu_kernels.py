"""The CPU's kernels one by one, next to plain torch and to a copy of as many bytes: the tables of docs/measurements.md.

    python bench/cpu_kernels.py              about a minute on two cores
    python bench/cpu_kernels.py --dry-run    the same in small; times mean nothing

Both sides take turns, so that whatever else the machine does slows both; medians of the rounds, and the least and
greatest, go into a JSON file (`--out FOLDER`, bench/results otherwise). Every result is compared with plain torch's.

Shape suffixes: T tokens, D hidden, H heads, K key heads, I intermediate, V vocabulary, C predictions, M outputs.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from luthier.threads import wait_without_spinning

wait_without_spinning()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

RESULTS = Path(__file__).with_name("results")
CLOSE = 1e-4
"""Largest relative L2 distance of a result from plain torch's, both in fp32."""
Call = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """How large the tensors are: SmolLM2-135M's, 1,024 tokens."""

    tokens: int = 1024
    hidden: int = 576
    heads: int = 9
    kv_heads: int = 3
    head_size: int = 64
    intermediate: int = 1536
    vocabulary: int = 49152
    predictions: int = 256
    rank: int = 16
    lengths: tuple[int, ...] = (64, 180, 400, 1024, 4096)
    seconds: float = 0.3
    """Of one side of one row, at least."""
    rounds: int = 5


TINY = Sizes(5, 16, 4, 2, 8, 24, 50, 3, 4, (3, 7), 0.0, 2)


@dataclass(frozen=True)
class Row:
    """One line of a table: sides that give the same, the first of them Luthier's."""

    name: str
    sides: dict[str, Call]
    moved: int = 0
    """Bytes that must be read and written; 0 where matrix products are what takes the time."""


def by_autograd(function: Callable[..., Tensor], grad: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Output and gradients, as plain torch has them."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def elementwise(s: Sizes) -> Iterator[Row]:
    """Norm, rotation, gated product: forwards and backwards."""
    from luthier.kernels import gated, rms_norm, rotary

    x, past, grad = (torch.randn(s.tokens, s.hidden) for _ in range(3))
    weight, total, out = torch.rand(s.hidden), torch.empty_like(x), torch.empty_like(x)
    rstd = rms_norm.forward(x, weight, 1e-6)[1]
    plain_norm = lambda: F.rms_norm(x + past, (s.hidden,), weight, 1e-6)  # noqa: E731
    yield Row(
        "RMS norm with residual, forward",
        {
            "luthier": lambda: rms_norm.forward(x, weight, 1e-6, residual=past, summed=total, out=out)[0],
            "torch": plain_norm,
        },
        4 * x.nbytes,
    )
    dx = torch.empty_like(x)
    leaf = x.clone().requires_grad_()
    normed = F.rms_norm(leaf, (s.hidden,), weight, 1e-6)
    yield Row(
        "RMS norm with residual, backward",
        {
            "luthier": lambda: rms_norm.backward(grad, x, rstd, weight, add_to=past, out=dx)[0],
            "torch": lambda: past + torch.autograd.grad(normed, leaf, grad, retain_graph=True)[0],
        },
        4 * x.nbytes,
    )
    heads, angle = torch.randn(s.tokens, s.heads, s.head_size), torch.randn(s.tokens, s.head_size // 2)
    cos, sin = (f(torch.cat((angle, angle), 1)) for f in (torch.cos, torch.sin))
    turned = torch.empty_like(heads)
    yield Row(
        "rotary embedding",
        {
            "luthier": lambda: rotary.rotate(heads, cos, sin, out=turned),
            "torch": lambda: rotary.reference(heads, cos, sin),
        },
        2 * heads.nbytes,
    )
    gate, up, back = (torch.randn(s.tokens, s.intermediate) for _ in range(3))
    made, to_gate, to_up = (torch.empty_like(gate) for _ in range(3))
    yield Row(
        "SwiGLU, forward",
        {
            "luthier": lambda: gated.forward(gate, up, "silu", out=made),
            "torch": lambda: F.silu(gate) * up,
        },
        3 * gate.nbytes,
    )
    leaves = (gate.clone().requires_grad_(), up.clone().requires_grad_())
    product = F.silu(leaves[0]) * leaves[1]
    yield Row(
        "SwiGLU, backward",
        {
            "luthier": lambda: gated.backward(back, gate, up, "silu", gate_grad=to_gate, up_grad=to_up),
            "torch": lambda: torch.autograd.grad(product, leaves, back, retain_graph=True),
        },
        5 * gate.nbytes,
    )


def head(s: Sizes) -> Iterator[Row]:
    """Log-probabilities of targets, and the logits' gradient in the logits' place."""
    from luthier.kernels import softmax_gradient

    logits = torch.randn(s.predictions, s.vocabulary)
    target, factor = torch.randint(s.vocabulary, (s.predictions,)), torch.rand(s.predictions)
    shape, place = softmax_gradient.LogitShape(), torch.empty_like(logits)

    def plain() -> Tensor:
        def logp(logits_CV: Tensor) -> Tensor:
            return softmax_gradient.reference(logits_CV, target, shape)

        return by_autograd(logp, factor, logits)[1]

    yield Row(
        f"log-probability and gradient, {s.predictions} rows of {s.vocabulary:,} logits",
        {
            "luthier": lambda: softmax_gradient.logp_and_gradient_(
                place.copy_(logits), target, factor, shape
            )[1],
            "torch": plain,
        },
        4 * logits.nbytes,
    )


def attention(s: Sizes) -> Iterator[Row]:
    """One document, forward and backward."""
    from luthier.kernels.attention import forest_attention
    from luthier.kernels.forest import AttentionRule, Forest

    rule = AttentionRule(s.head_size**-0.5)
    for length in s.lengths:
        query = torch.randn(s.heads, length, s.head_size)
        key, value = (torch.randn(s.kv_heads, length, s.head_size) for _ in range(2))
        grad, forest = torch.randn_like(query), Forest((0, length), (-1,))

        def ours(query: Tensor, key: Tensor, value: Tensor, forest: Forest = forest) -> Tensor:
            return forest_attention(query, key, value, forest, rule).transpose(0, 1)

        def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(
                query[None], key[None], value[None], is_causal=True, enable_gqa=True
            )[0]

        yield Row(
            f"attention of {length} tokens, {s.heads} heads ({s.kv_heads} of keys) of {s.head_size}",
            {
                name: lambda f=f, t=(query, key, value), grad=grad: by_autograd(f, grad, *t)
                for name, f in (("luthier", ours), ("torch", plain))
            },
        )


def products(s: Sizes) -> Iterator[Row]:
    """An adapter inside the product, and the ways to a weight's gradient."""
    from luthier.kernels.linears import Linear, LowRank, PackedLinears, reference

    outputs = s.intermediate
    layers = [
        Linear(
            torch.randn(outputs, s.hidden),
            None,
            LowRank(torch.randn(s.rank, s.hidden), torch.randn(outputs, s.rank), 0.5),
        )
        for _ in range(2)
    ]
    packed = PackedLinears(layers)
    packed.refresh()
    wide, out = (
        torch.randn(s.tokens, s.hidden + packed.spare),
        torch.empty(s.tokens, 2 * outputs + packed.spare),
    )
    x = wide[:, : s.hidden].contiguous()
    yield Row(
        f"two layers {s.hidden} -> {outputs} with adapters of rank {s.rank}, forward",
        {
            "luthier": lambda: packed.forward(wide, out[:, : packed.num_out]),
            "torch": lambda: reference(x, layers),
        },
    )
    for inputs, outputs in ((s.hidden, s.hidden), (s.hidden, s.intermediate), (s.intermediate, s.hidden)):
        x, grad = torch.randn(s.tokens, inputs), torch.randn(s.tokens, outputs)
        place = torch.empty(outputs, inputs)
        yield Row(
            f"gradient of a weight {inputs} -> {outputs}",
            {
                "luthier": lambda x=x, grad=grad: grad.T @ x,
                "(x.T @ grad).T": lambda x=x, grad=grad: (x.T @ grad).T,
                "linear(grad.T, x.T)": lambda x=x, grad=grad: F.linear(grad.T, x.T),
                "copy of grad.T, @ x": lambda x=x, grad=grad: grad.T.contiguous() @ x,
                "into a given place": lambda x=x, grad=grad, place=place: torch.mm(grad.T, x, out=place),
                "added to a given place": lambda x=x, grad=grad, place=place: place.zero_().addmm_(grad.T, x),
            },
        )


def distance(found: Any, truth: Any) -> float:
    """Largest relative L2 distance of a tensor from plain torch's."""
    pairs = [(found, truth)] if isinstance(found, Tensor) else list(zip(found, truth, strict=True))
    return max(
        (float(torch.dist(a.double(), b.double()) / b.double().norm().clamp_min(1e-30)) for a, b in pairs),
        default=0.0,
    )


def seconds_of(call: Call, seconds: float) -> float:
    """Mean seconds of a call, over at least this time."""
    start, done = time.perf_counter(), 0
    while not done or time.perf_counter() - start < seconds:
        call()
        done += 1
    return (time.perf_counter() - start) / done


def measure(row: Row, s: Sizes) -> dict[str, Any]:
    """Times of all sides in turns, and of a copy of as many bytes."""
    results = [call() for call in row.sides.values()]
    error = max(distance(result, results[1]) for result in results)
    sides = dict(row.sides)
    if row.moved:
        source = torch.ones(row.moved // 8)  # a copy reads and writes each byte
        target = torch.empty_like(source)
        sides["copy"] = lambda: target.copy_(source)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(s.rounds):
        for name, call in sides.items():
            times[name].append(seconds_of(call, s.seconds / s.rounds))
    told = {name: {"median": statistics.median(t), "min": min(t), "max": max(t)} for name, t in times.items()}
    return {"op": row.name, "bytes": row.moved, "error": error, "right": error < CLOSE, "seconds": told}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures everything, prints a table, writes the file; 1 if a result is wrong."""
    from luthier.runs.environment import describe_environment

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--dry-run", action="store_true", help="small tensors: does everything run?")
    options.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    known = options.parse_args(arguments)
    sizes = TINY if known.dry_run else Sizes()
    torch.manual_seed(0)
    rows = []
    for part in (elementwise, head, attention, products):
        for row in part(sizes):
            rows.append(measure(row, sizes))
            times = (f"{name} {1e3 * t['median']:.3f}" for name, t in rows[-1]["seconds"].items())
            print(f"{row.name}: {', '.join(times)} ms{'' if rows[-1]['right'] else '  WRONG'}", flush=True)
    result = {
        "kind": "cpu-kernels",
        "date": date.today().isoformat(),
        "dry_run": known.dry_run,
        "machine": describe_environment() | {"threads": torch.get_num_threads()},
        "sizes": asdict(sizes),
        "ops": rows,
    }
    known.out.mkdir(parents=True, exist_ok=True)
    path = known.out / f"cpu-kernels-{'dry-run-' * known.dry_run}{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""How fast the machine multiplies matrices of a model's shapes, and moves memory: what the roofline is made of.

For each linear layer of the shape, three products: forward x·Wᵀ, input gradient dY·W, weight gradient dYᵀ·x. Each
takes the best of its repeats, as anything that disturbs a measurement makes it slower. A dtype that the machine only
emulates gets a glance, so that the time goes to the one that counts.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from bench.protocol import Spec, Wire
from bench.shapes import SHAPES, Shape

KINDS = ("forward", "input_gradient", "weight_gradient")
GLANCE_TOKENS = 64
EMULATED = 0.5
"""A dtype under this share of the fastest one's rate in a glance is not measured any further."""


def run(spec: Spec, wire: Wire) -> None:
    """Measures each dtype of `spec["dtypes"]` for about `spec["seconds"]` together."""
    device, shape = torch.device(spec["device"]), SHAPES[spec["shape"]]
    wire.send("loaded")
    glances = {
        name: product_rates(shape, GLANCE_TOKENS, getattr(torch, name), device, 0.0)
        for name in spec["dtypes"]
    }
    chosen = worth_measuring(glances)
    share = spec["seconds"] / (len(chosen) + 0.25)
    for name, rates in glances.items():
        if name in chosen:
            rates = product_rates(shape, spec["tokens"], getattr(torch, name), device, share)
        wire.send("result", name=name, value=rates)
    wire.send("result", name="measured", value=chosen)
    wire.send("result", name="bandwidth", value=bandwidth(device, share / 4))
    wire.send("result", name="threads", value=torch.get_num_threads())
    wire.send("result", name="torch", value=torch.__version__)


def worth_measuring(glances: dict[str, dict[str, float]]) -> list[str]:
    """The dtypes that come near the fastest one in a glance."""
    most = max(rates["forward"] for rates in glances.values())
    return [name for name, rates in glances.items() if rates["forward"] >= EMULATED * most]


def product_rates(
    shape: Shape, tokens: int, dtype: torch.dtype, device: torch.device, seconds: float
) -> dict[str, float]:
    """Operations a second of each kind of product, over the linear layers of one decoder layer."""
    sizes = sorted(set(shape.linears.values()))
    counts = {size: list(shape.linears.values()).count(size) for size in sizes}
    share = seconds / (len(sizes) * len(KINDS))
    spent: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for (inputs, outputs), number in counts.items():
        x = torch.randn(tokens, inputs, device=device, dtype=dtype)
        grad = torch.randn(tokens, outputs, device=device, dtype=dtype)
        weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
        products: dict[str, Callable[[], Tensor]] = {
            "forward": lambda x=x, weight=weight: linear(x, weight),
            "input_gradient": lambda grad=grad, weight=weight: grad @ weight,
            "weight_gradient": lambda grad=grad, x=x: grad.T @ x,
        }
        for kind, product in products.items():
            spent[kind] += number * best_time(product, share, device)
    operations = 2.0 * tokens * sum(inputs * outputs for inputs, outputs in shape.linears.values())
    return {kind: operations / seconds for kind, seconds in spent.items()}


def best_time(call: Callable[[], Any], seconds: float, device: torch.device, at_least: int = 2) -> float:
    """Seconds of the fastest of the calls that fit into the time."""
    call()
    best, end, done = float("inf"), time.perf_counter() + seconds, 0
    while done < at_least or time.perf_counter() < end:
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        best, done = min(best, time.perf_counter() - start), done + 1
    return best


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device, seconds: float) -> float:
    """Bytes a second, read and written, of a copy too large for caches."""
    source = torch.randn(2**26 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_time(lambda: target.copy_(source), seconds, device, at_least=4)

"""The GPU's kernels one by one: are they right at real sizes, and how near the speed of memory are they?

    python bench/kernels.py              on a GPU: parity, GB/s next to a plain copy, times of plain and compiled torch
    python bench/kernels.py --dry-run    the same in small on the CPU, under Triton's interpreter; times mean nothing

Every kernel is checked against its definition in fp64 and against plain torch in the same dtype: its error may be
twice that of plain torch. `--out FOLDER` takes the JSON (bench/results otherwise); the status is 1 if one is wrong.

Shape suffixes: T tokens, D hidden, H heads, I intermediate, V vocabulary, C predictions, M outputs, R rank.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Sizes:
    """How large the tensors are."""

    tokens: int = 8192
    hidden: int = 4096
    heads: int = 32
    head_size: int = 128
    intermediate: int = 14336
    vocabulary: int = 151936
    predictions: int = 1024
    rank: int = 16
    dtype: torch.dtype = torch.bfloat16


# Triton's interpreter rounds float16 as a GPU does; bfloat16 it cuts off
TINY = Sizes(5, 64, 3, 8, 96, 1000, 3, 4, torch.float16)


@dataclass(frozen=True)
class Kernel:
    """One op: the kernels' calls, each with the bytes it must move, and the same in plain torch.

    `results` gives the outputs, then one gradient for each of `leaves`; so does plain torch by autograd.
    """

    name: str
    parts: dict[str, tuple[Callable[[], Any], int]]
    results: Callable[[], Sequence[Tensor]]
    plain: Callable[..., Tensor | tuple[Tensor, ...]]
    leaves: tuple[Tensor, ...]
    grad: Tensor | None = None
    rivals: tuple[tuple[str, Callable[[], Any]], ...] = ()

    def by_autograd(self, function: Callable[..., Any], dtype: torch.dtype) -> list[Tensor]:
        """Outputs and gradients as plain torch has them, in `dtype`."""
        leaves = [leaf.to(dtype) if leaf.is_floating_point() else leaf for leaf in self.leaves]
        if self.grad is None:
            outputs = function(*leaves)
            return list(outputs) if isinstance(outputs, tuple) else [outputs]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        output = function(*leaves)
        return [output.detach(), *torch.autograd.grad(output, leaves, self.grad.to(output.dtype))]


def size_in_bytes(*tensors: Tensor) -> int:
    """Of what the tensors show, not of the buffers that they are slices of."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def norms(sizes: Sizes, normal: Callable[..., Tensor]) -> Iterator[Kernel]:
    """The norm of the stream and that of heads."""
    from luthier.kernels import rms_norm as op
    from luthier.kernels.triton import rms_norm as device

    for name, shape in (
        ("rms_norm", (sizes.tokens, sizes.hidden)),
        ("rms_norm of heads", (sizes.tokens, sizes.heads, sizes.head_size)),
    ):
        x, grad, weight = normal(*shape), normal(*shape), normal(shape[-1])
        rstd, out, dx = device.forward(x, weight, 1e-6)[1], torch.empty_like(x), torch.empty_like(x)

        def results(x: Tensor = x, grad: Tensor = grad, weight: Tensor = weight) -> list[Tensor]:
            y, rstd = device.forward(x, weight, 1e-6)
            found, dweight = device.backward(grad, x, rstd, weight, weight_grad=True)
            assert dweight is not None
            return [y, found, dweight]

        parts: dict[str, tuple[Callable[[], Any], int]] = {
            "forward": (
                lambda x=x, w=weight, out=out: device.forward(x, w, 1e-6, out=out),
                size_in_bytes(x, out),
            ),
            "backward": (
                lambda g=grad, x=x, r=rstd, w=weight, out=dx: device.backward(g, x, r, w, out=out),
                size_in_bytes(grad, x, dx),
            ),
            "backward, residual": (
                lambda g=grad, x=x, r=rstd, w=weight, out=dx: device.backward(
                    g, x, r, w, add_to=out, out=out
                ),
                size_in_bytes(grad, x, dx, dx),
            ),
        }
        yield Kernel(name, parts, results, lambda x, w: op.reference(x, w, 1e-6), (x, weight), grad)


def turns(sizes: Sizes, normal: Callable[..., Tensor]) -> Iterator[Kernel]:
    """Rotary embedding, in place on columns of a wider buffer as in a layer."""
    from luthier.kernels import rotary as op
    from luthier.kernels.triton import rotary as device

    num_key_heads = max(1, sizes.heads // 4)
    wide = normal(sizes.tokens, sizes.heads + 2 * num_key_heads, sizes.head_size)
    query = wide[:, : sizes.heads]
    key = wide[:, sizes.heads : sizes.heads + num_key_heads]
    angle = normal(sizes.tokens, sizes.head_size // 2).float()
    angles = torch.cat((angle, angle), 1)
    cos, sin = angles.cos(), angles.sin()
    grad = normal(*query.shape)
    yield Kernel(
        "rotary",
        {
            "both, in place": (
                lambda: device.rotate_both(query, key, cos, sin),
                2 * size_in_bytes(query, key) + size_in_bytes(cos, sin),
            )
        },
        lambda: [device.rotate(query, cos, sin), device.rotate(grad, cos, sin, inverse=True)],
        lambda x: op.reference(x, cos.to(x.dtype), sin.to(x.dtype)),
        (query.clone(),),
        grad,
    )


def products(sizes: Sizes, normal: Callable[..., Tensor]) -> Iterator[Kernel]:
    """The gated product, gate and up being halves of one buffer."""
    from luthier.kernels import gated as op
    from luthier.kernels.triton import gated as device

    for kind in op.KINDS:
        gate, up = normal(sizes.tokens, 2 * sizes.intermediate).chunk(2, 1)
        grad = normal(sizes.tokens, sizes.intermediate)
        out = torch.empty_like(grad)

        def results(gate: Tensor = gate, up: Tensor = up, g: Tensor = grad, kind: str = kind) -> list[Tensor]:
            return [device.forward(gate, up, kind), *device.backward(g, gate, up, kind)]

        parts: dict[str, tuple[Callable[[], Any], int]] = {
            "forward": (
                lambda gate=gate, up=up, out=out, kind=kind: device.forward(gate, up, kind, out=out),
                3 * size_in_bytes(out),
            ),
            "backward": (
                lambda gate=gate, up=up, g=grad, kind=kind, out=out: device.backward(
                    g, gate, up, kind, gate_grad=out, up_grad=g
                ),
                5 * size_in_bytes(out),
            ),
        }
        yield Kernel(
            f"gated {kind}",
            parts,
            results,
            lambda g, u, kind=kind: op.reference(g, u, kind),
            (gate, up),
            grad.clone(),
        )


def heads(sizes: Sizes, normal: Callable[..., Tensor]) -> Iterator[Kernel]:
    """Log-probabilities and the logits' gradient."""
    from luthier.kernels import softmax_gradient as op
    from luthier.kernels.triton import softmax_gradient as device

    logits = normal(sizes.predictions, sizes.vocabulary)
    target = torch.randint(sizes.vocabulary, (sizes.predictions,), device=logits.device)
    ones = torch.ones(sizes.predictions, device=logits.device)
    for shape in (op.LogitShape(), op.LogitShape(0.5, 30.0)):
        work = logits.clone()
        name = "softmax_gradient" if shape.softcap is None else "softmax_gradient, capped"
        logz = device.forward(logits, target, shape)[1]
        parts: dict[str, tuple[Callable[[], Any], int]] = {
            "logp": (lambda s=shape: device.forward(logits, target, s), size_in_bytes(logits)),
            "gradient": (
                lambda s=shape, w=work, z=logz: device.gradient_(w, z, target, ones, s),
                2 * size_in_bytes(logits),
            ),
            "both in one": (
                lambda s=shape, w=work: device.logp_and_gradient_(w, target, ones, s),
                2 * size_in_bytes(logits),
            ),
        }
        yield Kernel(
            name,
            parts,
            lambda s=shape: device.logp_and_gradient_(logits.clone(), target, ones, s),
            lambda x, s=shape: op.reference(x, target, s),
            (logits,),
            ones,
        )


def weights(sizes: Sizes, normal: Callable[..., Tensor]) -> Iterator[Kernel]:
    """NF4 into a buffer with spare columns, and the two skinny products of LoRA."""
    from luthier.kernels import nf4
    from luthier.kernels.triton import low_rank as low_rank_device
    from luthier.kernels.triton import nf4 as nf4_device

    weight = normal(sizes.intermediate, sizes.hidden)
    for double in (False, True):
        packed = nf4.quantize(weight, double=double)
        out = torch.empty(sizes.intermediate, sizes.hidden + 64, dtype=sizes.dtype, device=weight.device)
        part = out[:, : sizes.hidden]
        yield Kernel(
            "nf4, double" if double else "nf4",
            {
                "dequantize": (
                    lambda p=packed, out=part: nf4_device.dequantize(p, out),
                    packed.num_bytes() + size_in_bytes(part),
                )
            },
            lambda p=packed, out=part: [nf4_device.dequantize(p, out)],
            # rounded as the kernel's is: the weights must be equal, not near
            lambda p=packed: nf4.reference(p).to(sizes.dtype),
            (),
            rivals=bitsandbytes_rival(weight, double),
        )
    grad, low, b = (
        normal(sizes.tokens, sizes.intermediate),
        normal(sizes.tokens, sizes.rank),
        normal(sizes.intermediate, sizes.rank),
    )
    made = torch.empty_like(low)
    yield Kernel(
        "low_rank",
        {
            "both": (
                lambda: low_rank_device.backward(grad, b, low, out=made),
                size_in_bytes(grad, b, low, b, low),
            )
        },
        lambda: low_rank_device.backward(grad, b, low, out=made),
        lambda grad, b, low: (grad @ b, grad.T @ low),
        (grad, b, low),
    )


def bitsandbytes_rival(weight: Tensor, double: bool) -> tuple[tuple[str, Callable[[], Any]], ...]:
    """What people decode NF4 with today, if it is installed and there is a GPU to measure it on."""
    if not weight.is_cuda:
        return ()
    try:
        from bitsandbytes import functional
    except ImportError:
        return ()
    codes, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    return (("bitsandbytes", lambda: functional.dequantize_4bit(codes, state)),)


def seconds_of(function: Callable[[], Any], device: torch.device, budget: float) -> float:
    """Median time of one call, by the device's own events; inputs are larger than a GPU's cache."""
    function()
    if device.type != "cuda":
        begun = time.perf_counter()
        function()
        return time.perf_counter() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    function()
    torch.cuda.synchronize()
    count = max(5, min(200, int(budget / max(time.perf_counter() - begun, 1e-5))))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def errors(kernel: Kernel, dtype: torch.dtype) -> dict[str, Any]:
    """Relative errors of the kernel and of plain torch, result by result, and whether the rule holds for all."""
    truth = kernel.by_autograd(kernel.plain, torch.float64)
    other = kernel.by_autograd(kernel.plain, dtype)
    ours, plain = [], []
    for mine, theirs, exact in zip(kernel.results(), other, truth, strict=True):
        size = exact.double().norm().clamp(min=1e-30)
        ours.append(float((mine.double() - exact).norm() / size))
        plain.append(float((theirs.double() - exact).norm() / size))
    right = all(mine <= 2 * theirs + 1e-6 for mine, theirs in zip(ours, plain, strict=True))
    return {"error": ours, "plain_error": plain, "right": right}


def measure(
    kernel: Kernel, dtype: torch.dtype, device: torch.device, budget: float, compiled: bool
) -> dict[str, Any]:
    """Parity and times of one op."""
    row: dict[str, Any] = {"op": kernel.name, **errors(kernel, dtype), "parts": {}}
    for name, (call, size) in kernel.parts.items():
        seconds = seconds_of(call, device, budget)
        row["parts"][name] = {"seconds": seconds, "bytes": size, "gb_per_s": size / seconds / 1e9}
    row["seconds"] = seconds_of(kernel.results, device, budget)
    row["eager_seconds"] = seconds_of(lambda: kernel.by_autograd(kernel.plain, dtype), device, budget)
    if compiled:
        fast = torch.compile(kernel.plain, dynamic=False)
        row["compiled_seconds"] = seconds_of(lambda: kernel.by_autograd(fast, dtype), device, budget)
    for name, call in kernel.rivals:
        row[f"{name}_seconds"] = seconds_of(call, device, budget)
    return row


def copy_rate(device: torch.device, budget: float) -> float:
    """Bytes a second, read and written, of a plain copy: the speed that no kernel here can pass by much."""
    source = torch.randn((1 << 28) if device.type == "cuda" else (1 << 16), device=device)
    target = torch.empty_like(source)
    return 2 * size_in_bytes(source) / seconds_of(lambda: target.copy_(source), device, budget)


def line(row: dict[str, Any], copy: float) -> str:
    """One op for the eye."""
    parts = ", ".join(
        f"{name} {part['gb_per_s']:.0f} GB/s ({part['gb_per_s'] * 1e9 / copy:.0%})"
        for name, part in row["parts"].items()
    )
    times = [f"eager x{row['eager_seconds'] / row['seconds']:.1f}"]
    times += [
        f"{name.removesuffix('_seconds')} x{row[name] / row['seconds']:.1f}"
        for name in row
        if name.endswith("_seconds") and name != "eager_seconds"
    ]
    verdict = "right" if row["right"] else f"WRONG {row['error']} against {row['plain_error']}"
    return f"{row['op']:26} {verdict:6} {parts}; {', '.join(times)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if a kernel is wrong."""
    parser = argparse.ArgumentParser(prog="bench/kernels.py", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, interpreted")
    parser.add_argument("--no-compile", action="store_true", help="do not time torch.compile")
    parser.add_argument("--seconds", type=float, default=0.3, help="to time one call for")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    known = parser.parse_args(arguments)
    if known.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    elif not torch.cuda.is_available():
        print("No GPU that torch can use was found. --dry-run runs the same in small on the CPU.")
        return 2
    device, sizes = (torch.device("cpu"), TINY) if known.dry_run else (torch.device("cuda"), Sizes())
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(sizes.dtype)

    copy, compiled = copy_rate(device, known.seconds), not (known.dry_run or known.no_compile)
    rows = []
    for family in (norms, turns, products, heads, weights):
        for kernel in family(sizes, normal):
            rows.append(measure(kernel, sizes.dtype, device, known.seconds, compiled))
            print(line(rows[-1], copy), flush=True)
    path = save(known.out, known.dry_run, sizes, copy, rows)
    print(f"A copy moves {copy / 1e9:.0f} GB/s. Written: {path}")
    return 0 if all(row["right"] for row in rows) else 1


def save(folder: Path, dry_run: bool, sizes: Sizes, copy: float, rows: list[dict[str, Any]]) -> Path:
    """The JSON of one run, with what is needed to judge it later."""
    import triton

    from luthier.runs.environment import describe_environment

    result = {
        "kind": "kernels",
        "date": date.today().isoformat(),
        "dry_run": dry_run,
        "machine": describe_environment() | {"triton": triton.__version__},
        "sizes": asdict(sizes) | {"dtype": str(sizes.dtype).removeprefix("torch.")},
        "copy_gb_per_s": copy / 1e9,
        "ops": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    where = "dry-run" if dry_run else torch.cuda.get_device_name().replace(" ", "-")
    path = folder / f"kernels-{where}-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())

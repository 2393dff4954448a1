"""Where a training step goes: the time of each kind of operation, from torch's own profiler.

Time is an operation's own, without what it calls. C++ called through ctypes is no operation of torch: it shows as
the own time of the autograd function around it, and is counted by that function's name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from luthier.training.loop import Trainer

WARM_UP = 1
"""Steps before the one that is looked at: buffers are there, memory is warm."""
KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("attention", "sdp", "flash", "::_softmax"),
    "matrix products": ("mm", "linear", "matmul", "einsum", "mkldnn", "gemm"),
    "copies": (
        "copy",
        "contiguous",
        "cat",
        "clone",
        "index",
        "gather",
        "_to_copy",
        "fill",
        "zero",
        "embedding",
    ),
    "elementwise": (
        *("add", "mul", "div", "sub", "neg", "silu", "gelu", "sigmoid", "rsqrt", "sqrt", "pow", "exp", "log"),
        *("mean", "sum", "norm", "cos", "sin", "tanh", "where", "clamp", "foreach", "adam", "max", "softmax"),
        *("rotary", "gated", "rms"),
    ),
}
"""Kind of an operation by a part of its name; the first that fits counts."""


def kind_of(name: str) -> str:
    """The kind of an operation."""
    low = name.lower()
    for kind, parts in KINDS.items():
        if any(part in low for part in parts):
            return kind
    return "other"


def profiled(trainer: "Trainer") -> dict[str, Any]:
    """Runs a few steps and takes one of them apart."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    trainer.policy.train()
    for step in range(WARM_UP):
        trainer.step(trainer.source.step(step))
    with profile(activities=activities) as seen:
        report = trainer.step(trainer.source.step(WARM_UP))
        if on_gpu:
            torch.cuda.synchronize()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    operations = [(event.key, float(getattr(event, own)) / 1e6, event.count) for event in seen.key_averages()]
    return shares(operations) | {"tokens": report.values["tokens"], "on": trainer.device.type}


def shares(operations: list[tuple[str, float, int]]) -> dict[str, Any]:
    """Seconds by kind, and the operations that took longest."""
    kinds = dict.fromkeys((*KINDS, "other"), 0.0)
    for name, seconds, _ in operations:
        kinds[kind_of(name)] += seconds
    longest = sorted(operations, key=lambda operation: -operation[1])[:25]
    return {
        "seconds": sum(kinds.values()),
        "kinds": kinds,
        "longest": [{"name": n, "seconds": s, "calls": c, "kind": kind_of(n)} for n, s, c in longest],
    }


def table(found: dict[str, Any]) -> "Table":
    """A profile for people."""
    from rich.table import Table

    total = found["seconds"] or 1.0
    shown = Table(title=f"one step of {found['tokens']:,.0f} tokens: {total:.2f} s on {found['on']}")
    for name in ("what", "seconds", "share", "calls"):
        shown.add_column(name, justify="left" if name == "what" else "right")
    for kind, seconds in sorted(found["kinds"].items(), key=lambda item: -item[1]):
        shown.add_row(f"[bold]{kind}[/]", f"{seconds:.3f}", f"{seconds / total:.1%}", "")
    shown.add_section()
    for line in found["longest"]:
        share = f"{line['seconds'] / total:.1%}"
        shown.add_row(f"{line['name']} ({line['kind']})", f"{line['seconds']:.3f}", share, str(line["calls"]))
    return shown

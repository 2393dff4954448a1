"""Compiles every Triton kernel to machine code for a GPU that need not be there, and prints what each one takes.

    python tests/triton_compile.py 90        compute capability 9.0; exits 1 if a kernel spills

The interpreter accepts much that the compiler refuses (types of branches, layouts, resources), so both are tested.
The ops are called as on a GPU, at sizes of real models, with a driver that knows its target and launches nothing.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from luthier.kernels import gated as gated_op
from luthier.kernels import nf4 as nf4_op
from luthier.kernels.softmax_gradient import LogitShape
from luthier.kernels.triton import gated, low_rank, nf4, rms_norm, rotary, softmax_gradient

TOKENS = 64


class AbsentGpu:
    """The part of Triton's driver that compilation asks."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


class CompileOnly:
    """Stands for a kernel: a launch compiles it for its arguments and notes the resources."""

    def __init__(self, kernel: JITFunction[Any], report: list[tuple[str, int, int, int]]):
        self.kernel, self.report = kernel, report

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile_it(*args: Any, **settings: Any) -> None:
            if "WIDEN" in settings:
                settings["WIDEN"] = False  # as on a GPU, although the tensors here are not on one
            compiled = self.kernel.run(*args, grid=grid, warmup=True, **settings)
            registers, stack = _resources(compiled.asm["cubin"])
            module = self.kernel.fn.__module__.rpartition(".")[2]
            name = f"{module}.{self.kernel.fn.__name__}"
            self.report.append((name, registers, stack, compiled.metadata.shared))

        return compile_it


def _resources(machine_code: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread: a stack means spilled registers."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def _half(*size: int) -> Tensor:
    return torch.zeros(*size, dtype=torch.bfloat16)


def _norms() -> None:
    x, weight, rstd = _half(TOKENS, 4096 + 64)[:, :4096], _half(4096), torch.zeros(TOKENS)
    rms_norm.forward(x, weight, 1e-6)
    rms_norm.forward(x, weight, 1e-6, residual=x, summed=x)
    rms_norm.backward(x, x, rstd, weight, add_to=x)
    wide = _half(TOKENS, 16384)  # the widest stream of today's models: the most registers
    rms_norm.backward(wide, wide, rstd, _half(16384), weight_grad=True)
    heads = _half(TOKENS, 48 * 128).view(TOKENS, 48, 128)[:, :32]
    rms_norm.forward(heads, _half(128), 1e-6)
    rms_norm.backward(heads, heads, torch.zeros(TOKENS, 32), _half(128), weight_grad=True)


def _elementwise() -> None:
    heads = _half(TOKENS, 48 * 128).view(TOKENS, 48, 128)
    tables = torch.zeros(TOKENS, 128)
    rotary.rotate_both(heads[:, :32], heads[:, 32:40], tables, tables)
    # one key head: a size of 1 is a constant to the compiler, whose branches must still agree
    rotary.rotate_both(heads[:, :32], heads[:, 32:33], tables, tables, inverse=True)
    both = _half(TOKENS, 2 * 14336)
    for kind in gated_op.KINDS:
        gate, up = both[:, :14336], both[:, 14336:]
        gated.forward(gate, up, kind)
        gated.backward(up, gate, up, kind, product=gate)


def _head() -> None:
    target, ones = torch.zeros(TOKENS, dtype=torch.int64), torch.zeros(TOKENS)
    logits = _half(TOKENS, 151936)
    for shape in (LogitShape(), LogitShape(0.5, 30.0)):
        softmax_gradient.forward(logits, target, shape)
        softmax_gradient.gradient_(logits, ones, target, ones, shape)
        softmax_gradient.logp_and_gradient_(logits, target, ones, shape)


def _weights(capability: int) -> None:
    for width in (4096, 50):
        for double in (False, True):
            packed = nf4_op.quantize(torch.randn(32, width), double=double)
            nf4.dequantize(packed, _half(32, width + 64)[:, :width])
    if capability >= 80:  # as the op decides
        grad, low = _half(TOKENS * 8, 8192 + 64)[:, :8192], _half(TOKENS * 8, 32)
        low_rank.backward(grad, _half(8192, 32), low, out=low)


def compile_all(capability: int) -> list[tuple[str, int, int, int]]:
    """Kernel, registers and stack bytes a thread, shared bytes a program; one row a variant."""
    driver.set_active(AbsentGpu(capability))
    report: list[tuple[str, int, int, int]] = []
    for module in (gated, low_rank, nf4, rms_norm, rotary, softmax_gradient):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            setattr(module, name, CompileOnly(getattr(module, name), report))
    _norms()
    _elementwise()
    _head()
    _weights(capability)
    return report


def main() -> None:
    """Compiles for the capability in the first argument (80 if there is none)."""
    capability = int(sys.argv[1]) if len(sys.argv) > 1 else 80
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        report = compile_all(capability)
    for name, registers, stack, shared in report:
        print(f"{name:36} {registers:4} registers {stack:5} stack {shared:7} shared")
    sys.exit(any(stack for _, _, stack, _ in report))


if __name__ == "__main__":
    main()

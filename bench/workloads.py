"""What is measured, as data: one entry a workload, with its size on the CPU and on the GPU."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["sft", "dpo", "grpo", "generate"]


@dataclass(frozen=True)
class Size:
    """A workload on one kind of device."""

    models: tuple[str, ...]
    """Names in shapes.py."""
    samples: int
    """Rows of one optimizer step; of `generate`, prompts."""
    tokens: tuple[int, ...] = ()
    """Document lengths, one measurement each; empty: lengths are drawn from the recorded ones."""
    micro: tuple[int, ...] = (1, 2, 4, 8)
    """Micro-batches (rows) that peers may choose from."""
    memory_caps: tuple[float, ...] = ()
    """GiB that the process may use of the GPU, one measurement each."""


@dataclass(frozen=True)
class Workload:
    """One row of the table in ../docs/performance.md."""

    key: str
    about: str
    kind: Kind
    cpu: Size | None
    gpu: Size | None
    lengths: str = ""
    """File in lengths/ that row lengths are drawn from."""
    prompt: int = 1
    """Tokens of a document of fixed length that are not learned."""
    rank: int | None = 16
    """Rank of the adapters on all linear layers; None: full fine-tuning."""
    four_bit: bool = False
    lr: float = 2e-4
    job_steps: int = 50
    """Optimizer steps of the job whose whole time is told."""
    answer: int = 0
    """Tokens to generate; of `grpo`, mean length of a completion."""
    group: int = 1
    """Completions of one prompt."""
    missing: str = ""
    """Why Luthier has no row yet; empty: it has."""

    @property
    def comparable(self) -> bool:
        """Whether plain transformers can compute the same losses: weights in four bits are another model's."""
        return self.kind == "sft" and not self.missing and not self.four_bit


SMALL, LARGE = "SmolLM2-135M", ("Qwen3-0.6B", "Llama-3.1-8B")

WORKLOADS = {
    workload.key: workload
    for workload in (
        Workload(
            "A",
            "short chats (Alpaca's lengths), LoRA r16 on all linear layers, 16 rows a step",
            "sft",
            cpu=Size((SMALL,), samples=16),
            gpu=Size(LARGE, samples=16, micro=(2, 4, 8, 16)),
            lengths="alpaca",
        ),
        Workload(
            "B",
            "school maths (GSM8K's lengths), LoRA r16, 16 rows a step",
            "sft",
            cpu=Size((SMALL,), samples=16),
            gpu=Size(LARGE, samples=16, micro=(2, 4, 8, 16)),
            lengths="gsm8k",
        ),
        Workload(
            "C",
            "long documents, LoRA r16",
            "sft",
            cpu=Size((SMALL,), samples=2, tokens=(4096,), micro=(1, 2)),
            gpu=Size(LARGE, samples=4, tokens=(8192, 32768), micro=(1, 2, 4)),
            job_steps=20,
        ),
        Workload(
            "D",
            "preference pairs (the DPO data's lengths), LoRA r16, beta 0.1, 8 pairs a step",
            "dpo",
            cpu=Size((SMALL,), samples=8, micro=(1, 2, 4)),
            gpu=Size(LARGE, samples=16, micro=(1, 2, 4, 8)),
            lengths="dpo",
            lr=5e-6,
        ),
        Workload(
            "E",
            "GRPO update on frozen rollouts (prompt 512, completion 256 ± 128, 8 a prompt), LoRA r16",
            "grpo",
            cpu=Size((SMALL,), samples=2, micro=(1, 2, 4)),
            gpu=Size(LARGE, samples=8, micro=(2, 4, 8)),
            prompt=512,
            answer=256,
            group=8,
            lr=1e-6,
            missing="GRPO is not there yet",
        ),
        Workload(
            "F",
            "full fine-tuning on packs of plain text",
            "sft",
            cpu=Size((SMALL,), samples=4, tokens=(1024,), micro=(1, 2, 4)),
            gpu=Size(("Qwen3-0.6B",), samples=16, tokens=(2048,), micro=(2, 4, 8, 16)),
            rank=None,
            lr=2e-5,
        ),
        Workload(
            "G",
            "QLoRA r16 under a cap of GPU memory, 1k documents",
            "sft",
            cpu=None,
            gpu=Size(("Llama-3.1-8B",), samples=8, tokens=(1024,), micro=(1, 2), memory_caps=(6, 8, 16, 24)),
            four_bit=True,
        ),
        Workload(
            "generation",
            "32 prompts (Alpaca's lengths) x 128 tokens, greedy",
            "generate",
            cpu=Size((SMALL,), samples=32),
            gpu=Size(LARGE, samples=32),
            lengths="alpaca",
            rank=None,
            answer=128,
        ),
    )
}

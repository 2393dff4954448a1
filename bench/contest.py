"""Who takes part: for each workload and device, the processes to run and with which options."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from bench.workloads import Size, Workload

PEERS_PYTHON = Path(__file__).with_name(".venv-peers") / "bin" / "python"
DEFAULT_MICRO = 8
"""Rows of a device batch in the issue's measurement of TRL."""
DEFAULT_MAX_LENGTH = 1024
"""TRL's; longer rows would be cut."""

IMITATION = "luthier-sft"

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_TOP_PAD_": str(2**26),
    "GOMP_SPINCOUNT": "1000",
}
"""What Luthier sets for itself, as environment variables: so that it can be told how much of the gain it is."""


@dataclass(frozen=True)
class Contestant:
    """One row of the table."""

    name: str
    module: str
    """File in contestants/."""
    about: str
    options: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    peer: bool = True

    @property
    def same_rows(self) -> bool:
        """Whether its steps hold the rows of the file in order. Packed ones hold others."""
        return not self.options.get("packing")

    def command(self) -> list[str]:
        """The command that starts it, in the venv that has its libraries."""
        python = str(PEERS_PYTHON) if self.peer and PEERS_PYTHON.exists() else sys.executable
        return [python, "-m", "bench.contestants", self.module]


def luthier(workload: Workload) -> Contestant:
    """Luthier with its defaults."""
    module = "luthier_generate" if workload.kind == "generate" else "luthier_sft"
    options = {"method": "dpo"} if workload.kind == "dpo" else {}
    return Contestant("luthier", module, "Luthier, its defaults", options, peer=False)


def imitation() -> Contestant:
    """Luthier learning the same tokens of preference pairs by SFT: what DPO's memory is compared with."""
    return Contestant(
        IMITATION, "luthier_sft", "Luthier, SFT on the same tokens", {"method": "sft"}, peer=False
    )


def reference() -> Contestant:
    """The plain model that losses and gradients are compared with."""
    return Contestant("reference", "reference", "plain transformers, fp32, one document a pass", peer=False)


def peers(
    workload: Workload, size: Size, longest: int, device: str, best: list[dict[str, Any]]
) -> list[Contestant]:
    """The peers of a workload; `best` are the options of TRL's sweep that were fastest, the fastest first."""
    if workload.kind == "generate":
        return list(_generators())
    if workload.kind == "dpo":
        return list(_preferences(min(DEFAULT_MICRO, size.samples), best))
    if workload.kind != "sft":
        return []
    length = {} if longest <= DEFAULT_MAX_LENGTH else {"max_length": longest}
    micro = min(DEFAULT_MICRO, size.samples)
    found = [Contestant("trl-default", "trl_sft", "TRL SFTTrainer, its defaults", {"micro": micro, **length})]
    found += _best("trl_sft", best)
    if best and device == "cpu":
        about = "TRL's best with Luthier's allocator and thread settings"
        found.append(Contestant("trl-best+env", "trl_sft", about, best[0], ALLOCATOR))
    if not workload.four_bit:
        for dtype in ("float32", "bfloat16"):
            about = (
                f"transformers Trainer and PEFT in {dtype}"
                if workload.rank
                else f"transformers Trainer in {dtype}"
            )
            options = {"micro": micro, "dtype": dtype}
            found.append(Contestant(f"hf-{dtype}", "hf_trainer", about, options))
    if device == "cuda":
        found += _gpu_only(micro, length)
    return found


def _gpu_only(micro: int, length: dict[str, int]) -> Iterator[Contestant]:
    tuned = {"micro": micro, "dtype": "bfloat16", "checkpointing": False, **length}
    yield Contestant(
        "trl-liger", "trl_sft", "TRL in bf16 with Liger's kernels; chosen by hand", {**tuned, "liger": True}
    )
    yield Contestant("unsloth", "unsloth_sft", "Unsloth, its notebook's settings", {"micro": micro, **length})


def _best(module: str, best: list[dict[str, Any]]) -> Iterator[Contestant]:
    for place, options in enumerate(best, 1):
        name = "trl-best" if place == 1 else f"trl-best-{place}"
        yield Contestant(name, module, f"TRL, number {place} of the sweep", options)


def _preferences(micro: int, best: list[dict[str, Any]]) -> Iterator[Contestant]:
    yield Contestant("trl-default", "trl_dpo", "TRL DPOTrainer, its defaults", {"micro": micro})
    yield from _best("trl_dpo", best)
    for dtype in ("float32", "bfloat16"):
        options = {"micro": 1, "dtype": dtype, "checkpointing": False}
        yield Contestant(f"trl-{dtype}", "trl_dpo", f"TRL in {dtype}, one pair at a time", options)


def _generators() -> Iterator[Contestant]:
    yield Contestant("hf-default", "hf_generate", "transformers generate, dtype as stored", {"dtype": "auto"})
    yield Contestant("hf-float32", "hf_generate", "transformers generate in float32", {"dtype": "float32"})
    about = "transformers generate in float32, static cache, not compiled"
    yield Contestant("hf-static", "hf_generate", about, {"dtype": "float32", "cache": "static"})


def sweep(workload: Workload, size: Size, longest: int) -> list[Contestant]:
    """TRL's declared sweep: dtype x micro-batch x gradient checkpointing x packing, which DPO does not have."""
    if workload.kind == "dpo":
        return list(_preference_sweep(size))
    if workload.kind != "sft":
        return []
    max_length = max(DEFAULT_MAX_LENGTH, longest)
    found = []
    for dtype, packing, checkpointing, micro in product(
        ("float32", "bfloat16"), (False, True), (False, True), size.micro
    ):
        options = {
            "dtype": dtype,
            "micro": micro,
            "checkpointing": checkpointing,
            "packing": packing,
            "max_length": max_length,
        }
        found.append(Contestant(sweep_name(options), "trl_sft", "a row of TRL's sweep", options))
    return found


def _preference_sweep(size: Size) -> Iterator[Contestant]:
    for dtype, checkpointing, micro in product(("float32", "bfloat16"), (False, True), size.micro):
        options = {"dtype": dtype, "micro": micro, "checkpointing": checkpointing}
        yield Contestant(sweep_name(options), "trl_dpo", "a row of TRL's sweep", options)


def sweep_name(options: dict[str, Any]) -> str:
    """A short name for options of the sweep."""
    parts = [{"float32": "fp32", "bfloat16": "bf16"}[options["dtype"]], f"mb{options['micro']}"]
    parts += ["gc"] * options["checkpointing"] + ["packed"] * options.get("packing", False)
    return "trl-" + "-".join(parts)

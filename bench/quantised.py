"""How much memory does training beside a base in few bits take? Measured in a process of its own, next to a formula.

    python -m bench.quantised [--scheme nf4] [--tokens 512] [--rank 8]

A random Llama-shaped model of about 310 million weights is written to disk in bfloat16. Another process notes what it
holds once everything is imported and the compiled kernels are loaded, then loads the model, puts an adapter on it and
learns from micro-batches. The most that it held above that (resident pages, as the kernel counts them) is compared
with what the formula says: weights, the shared buffer of decoded weights, adapter with gradients and optimizer states,
kept inputs of layers, and what one layer and the head work with. The goal is 0.65 bytes a weight of the base besides
what is stated for adapter and activations.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from bench import results

SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
GOAL = 0.65
CHILD = "--child"


def write_model(folder: Path) -> int:
    """Writes the model, shard by shard of one layer; returns the number of its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def status(field: str) -> int:
    """A size of this process in bytes, as the kernel tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def child(folder: Path, scheme: str, tokens: int, rank: int, steps: int) -> dict[str, Any]:
    """Loads, trains, and says what was held at most at each stage, in bytes above the beginning."""
    import numpy as np
    import torch

    import luthier.kernels.quant
    from luthier.allocator import give_back, keep_pages
    from luthier.config.plugins import load_plugin
    from luthier.data.batch import Example, Segment, collate
    from luthier.kernels import native
    from luthier.models.activations.levels import Level
    from luthier.models.fused.check import fuse_checked
    from luthier.models.load import load_model
    from luthier.models.lora import apply_lora
    from luthier.models.quantised.load import Quantisation, quantised
    from luthier.models.tripwire import choose_policy

    native.library()
    how = None
    if scheme != "none":
        how = Quantisation(load_plugin(luthier.kernels.quant, scheme)(), scheme)
    torch.randn(256, 256) @ torch.randn(256, 256)
    begun, stages = status("VmRSS"), {}
    model = load_model(folder, torch.float32, torch.device("cpu"), how)
    stages["loaded"] = status("VmHWM") - begun
    held = {"stored": sum(m.stored.num_bytes for m in quantised(model).values())}
    held["other weights"] = sum(p.numel() * p.element_size() for p in model.parameters())
    policy = choose_policy(model).policy
    apply_lora(policy.model, rank=rank)
    fusion, said = fuse_checked(policy)
    assert fusion is not None, said
    give_back()
    keep_pages()
    stages["checked"] = status("VmHWM") - begun
    for layer in fusion.layers:
        layer.level = Level.KEEP_INPUT
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False)
    draw = np.random.default_rng(0)
    ids = draw.integers(0, SHAPE["vocab_size"], tokens).astype(np.int32)
    batch = collate([Example((Segment(ids, np.ones(tokens, np.float32), -1),))])
    policy.train()
    losses = []
    for _ in range(steps):
        loss, logp_N = policy.linear_loss(batch, -batch.weight_N / len(batch.weight_N))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(-logp_N.mean()))
    stages["trained"] = status("VmHWM") - begun
    shared = sum(b.nbytes for (name, *_), b in fusion.workspace._buffers.items() if name == "weights")
    adapter = sum(p.numel() for p in trained)
    held |= {
        "decoded": shared,
        "adapter, its gradients and states": 16 * adapter,
        "kept inputs": tokens * SHAPE["hidden_size"] * 4 * len(fusion.layers),
        "work of one layer": fusion.workspace.num_bytes - shared,
        "head": 2 * 4 * tokens * SHAPE["vocab_size"] + 3 * 4 * tokens * SHAPE["hidden_size"],
    }
    return {"stages": stages, "formula": held, "losses": losses, "said": said}


def report(found: dict[str, Any], weights: int) -> list[str]:
    """What was measured, for people."""
    held, stages = found["formula"], found["stages"]
    predicted = sum(held.values())
    beside = predicted - held["stored"] - held["other weights"] - held["decoded"]
    lines = [f"{weights:,} weights; above the interpreter, in MiB:"]
    lines += [f"  {name:<36}{size / 2**20:>9.1f}" for name, size in held.items()]
    lines += [f"  {'formula':<36}{predicted / 2**20:>9.1f}"]
    lines += [f"  {'measured, ' + name:<36}{size / 2**20:>9.1f}" for name, size in stages.items()]
    per_weight = (stages["trained"] - beside) / weights
    lines += [
        f"peak when loading: {stages['loaded'] / weights:.3f} bytes a weight; peak in training less adapter and "
        f"activations: {per_weight:.3f} (goal {GOAL}); measured / formula {stages['trained'] / predicted:.3f}"
    ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quantised", description=__doc__)
    parser.add_argument("--scheme", default="nf4")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(CHILD, type=Path, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(child(given.child, given.scheme, given.tokens, given.rank, given.steps)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        weights = write_model(Path(folder))
        options = [f"--{name}={getattr(given, name)}" for name in ("scheme", "tokens", "rank", "steps")]
        command = [sys.executable, "-m", "bench.quantised", CHILD, folder, *options]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        print(made.stderr, file=sys.stderr)
        return 1
    found = json.loads(made.stdout.splitlines()[-1])
    print("\n".join(report(found, weights)))
    settings = {name: getattr(given, name) for name in ("scheme", "tokens", "rank", "steps")}
    path = results.FOLDER / f"quantised-{given.scheme}-{date.today()}.json"
    path.write_text(json.dumps({"shape": SHAPE, "weights": weights, **settings, **found}, indent=1) + "\n")
    print(f"kept in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

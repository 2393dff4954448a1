"""How much memory does a run take, and how much was predicted? Each setting in a process of its own.

    python -m bench.memory [NAME ...] [--list]

A process imports everything, loads the tokenizer and the rows, and notes what it holds: that is the interpreter. Then
it builds the model and trains two steps of two micro-batches as `luthier train` does. A thread looks every few
milliseconds at what the kernel says of it. Counted is what is the process's own (RssAnon and RssShmem): pages of mapped
files, such as libraries and weights that were read, can be dropped by the kernel at any time; they are told beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from bench import results

CHILD = "--child"
PAUSE = 0.003
LLAMA_135M = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
QWEN_06B = {
    "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
BODY_310M = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 1024, "intermediate_size": 2816,
    "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES = {"135m": LLAMA_135M, "310m": BODY_310M, "0.6b": QWEN_06B}


def _setting(shape: str, tokens: int, **sections: Any) -> dict[str, Any]:
    return {"shape": shape, "tokens": tokens, "sections": sections}


LORA = {"rank": 16}
SETTINGS = {
    "135m full adamw 512": _setting("135m", 512),
    "135m full adamw 2048": _setting("135m", 2048),
    "135m full adamw_8bit 512": _setting("135m", 512, optim={"name": "adamw_8bit"}),
    "135m full adafactor 512": _setting("135m", 512, optim={"name": "adafactor"}),
    "135m full recompute 2048": _setting("135m", 2048, memory={"activations": "recompute"}),
    "135m lora 512": _setting("135m", 512, lora=LORA),
    "135m lora 2048": _setting("135m", 2048, lora=LORA),
    "135m qlora nf4 512": _setting("135m", 512, lora=LORA, quant="nf4"),
    "135m qlora nf4 embeddings 512": _setting(
        "135m", 512, lora=LORA, quant={"name": "nf4", "embeddings": "nf4"}
    ),
    "135m qlora nf4 2048": _setting("135m", 2048, lora=LORA, quant="nf4"),
    "135m qlora int8 512": _setting("135m", 512, lora=LORA, quant="int8"),
    "310m qlora nf4 512 recompute": _setting(
        "310m", 512, lora={"rank": 8}, quant="nf4", memory={"activations": "recompute"}
    ),
    "310m lora 512": _setting("310m", 512, lora=LORA),
    "0.6b lora 512": _setting("0.6b", 512, lora=LORA),
    "0.6b qlora nf4 512": _setting("0.6b", 512, lora=LORA, quant="nf4"),
    "0.6b qlora int8 512": _setting("0.6b", 512, lora=LORA, quant="int8"),
    "0.6b qlora nf4 1024 recompute": _setting(
        "0.6b", 1024, lora=LORA, quant="nf4", memory={"activations": "recompute"}
    ),
}


def write_model(shape: dict[str, Any], folder: Path) -> None:
    """Writes a random model of this shape in bfloat16, with the demo model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from luthier.models.load import load_tokenizer

    torch.manual_seed(0)
    values = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, **shape}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer("demo:smollm2-135m").save_pretrained(folder)


def write_rows(path: Path, tokens: int) -> None:
    """Eight plain texts of at least so many tokens each."""
    import random

    draw = random.Random(0)
    words = [f"w{draw.randrange(10**4)}" for _ in range(500)]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(8):
            file.write(json.dumps({"text": " ".join(draw.choices(words, k=tokens))}) + "\n")


def config_of(setting: dict[str, Any], model: str, rows: str, root: str) -> dict[str, Any]:
    """The run of a setting, as plain values."""
    tokens = setting["tokens"]
    return {
        "model": {"name": model, "device": "cpu"},
        "data": {"path": rows, "max_length": tokens},
        "train": {"steps": 2, "tokens_per_step": 2 * tokens, "tokens_per_micro_batch": tokens},
        "run": {"name": "memory", "root": root},
        "memory": {"activations": "keep"},
        **setting["sections"],
    }


def held() -> dict[str, int]:
    """What the kernel says of this process, in bytes: its own pages, and those of mapped files."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    size = {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "RssShmem", "VmRSS")}
    return {"own": size["RssAnon"] + size["RssShmem"], "files": size["RssFile"], "all": size["VmRSS"]}


class Watch:
    """The most that was held, phase by phase."""

    def __init__(self) -> None:
        self.begun = held()
        self.phases: dict[str, dict[str, int]] = {}
        self._phase, self._done = "", threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """While it holds, what is seen counts for this phase."""
        self.phases[name], self._phase = {"own": 0, "files": 0, "all": 0}, name
        yield
        self._note()
        self._phase = ""

    def _look(self) -> None:
        while not self._done.wait(PAUSE):
            self._note()

    def _note(self) -> None:
        if self._phase:
            seen, now = self.phases[self._phase], held()
            for name, size in now.items():
                seen[name] = max(seen[name], size - self.begun[name])


def child(setting: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains; returns what was held at most in each phase above the beginning, and what was predicted."""
    import torch

    from luthier.config.load import config_from_dict
    from luthier.kernels import native
    from luthier.models.load import load_tokenizer
    from luthier.parallel.cluster import join_cluster
    from luthier.plan.memory import peak_of
    from luthier.training.build import build_data, build_trainer
    from luthier.training.sketch import sketch
    from luthier.training.template import build_template

    model, rows = str(folder / "model"), folder / "rows.jsonl"
    write_rows(rows, setting["tokens"])
    config = config_from_dict(config_of(setting, model, str(rows), str(folder)), [])
    cluster = join_cluster("cpu")
    native.library()
    tokenizer = load_tokenizer(model)
    data = build_data(config, tokenizer, build_template(config, tokenizer), cluster, quiet, folder / "tokens")
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):  # imports what the model's classes need
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    (torch.randn(256, 256, requires_grad=True) @ torch.randn(256, 256)).sum().backward()
    watch = Watch()
    begun = time.perf_counter()
    told: list[str] = []
    with watch.phase("built"):
        trainer, _, notes = build_trainer(config, data, cluster, told.append)
    after = held()
    base = base_bytes(trainer.policy.model)
    with watch.phase("trained"):
        trainer.run()
    found = {"begun": watch.begun, "phases": watch.phases, "seconds": time.perf_counter() - begun}
    found |= base
    found["between"] = {name: size - watch.begun[name] for name, size in after.items()}
    levels = trainer.learner.activations.plan.levels
    assert len(set(levels)) == 1, "the machine has room for one level in all layers"
    forecast = peak_of(sketch(config).sizes(levels[0]), setting["tokens"])
    found |= {"predicted": forecast.parts, "loading": forecast.loading, "total": forecast.total}
    return found | {"notes": [*notes, *told]}


def base_bytes(model: Any) -> dict[str, int]:
    """How many weights the base has, and the bytes of what they are stored in and of those that stay as they are."""
    from luthier.models.quantised.weight import StoredWeight

    stored = [module.stored for module in model.modules() if isinstance(module, StoredWeight)]
    plain = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return {
        "base_weights": sum(s.shape[0] * s.shape[1] for s in stored) + sum(p.numel() for p in plain),
        "base_bytes": sum(s.num_bytes for s in stored) + sum(p.nbytes for p in plain),
    }


def quiet(line: str) -> None:
    """Says nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--models", type=Path, default=None, help="keep the models here")
    parser.add_argument(CHILD, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(child(SETTINGS[given.child], given.models)))
        return 0
    chosen = [name for name in SETTINGS if not given.names or any(part in name for part in given.names)]
    if given.list:
        print("\n".join(chosen))
        return 0
    models, found = given.models or Path(tempfile.mkdtemp()), []
    print(f"{'':<32}{'predicted':>12}{'measured':>12}{'ratio':>8}   MiB; files beside it")
    for name in chosen:
        found.append(measure(name, models))
        print(line(found[-1]), flush=True)
    path = results.FOLDER / f"memory-{date.today()}.json"
    known = {one["name"]: one for one in (json.loads(path.read_text()) if path.exists() else [])}
    known |= {one["name"]: one for one in found}
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    print(f"kept in {path}")
    return 0


def line(found: dict[str, Any]) -> str:
    """A measurement for people: the most of the process's own pages, in the phase that had most."""
    measured = max(phase["own"] for phase in found["phases"].values())
    files = max(phase["files"] for phase in found["phases"].values())
    ratio = found["total"] / measured
    sizes = f"{found['total'] / 2**20:>12,.0f}{measured / 2**20:>12,.0f}{ratio:>8.3f}"
    return f"{found['name']:<32}{sizes}   {files / 2**20:,.0f}"


def measure(name: str, models: Path) -> dict[str, Any]:
    """One setting in a process of its own."""
    shape = SETTINGS[name]["shape"]
    folder = models / shape
    if not (folder / "model" / "config.json").exists():
        write_model(SHAPES[shape], folder / "model")
    command = [sys.executable, "-m", "bench.memory", CHILD, name, "--models", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if made.returncode:
        raise SystemExit(made.stderr)
    return {"name": name, **json.loads(made.stdout.splitlines()[-1])}


if __name__ == "__main__":
    sys.exit(main())

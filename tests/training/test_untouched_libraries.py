"""Whole runs leave torch, transformers and peft as they were: no function, class or method is replaced."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from luthier.config.dump import dump_config
from tiny_runs import WORDS, tiny_config

PROGRAM = """
import sys, types
import peft, torch, transformers
import luthier, luthier.training.run
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[2])  # so that its modules are loaded before the snapshot

def snapshot():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in ("torch", "transformers", "peft") or module is None:
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
                found[name, key] = value
            if isinstance(value, type) and value.__module__ == name:
                for attribute, member in list(vars(value).items()):
                    if isinstance(member, (types.FunctionType, staticmethod, classmethod, property)):
                        found[name, key, attribute] = member
    return found

before = snapshot()
assert len(before) > 20000, len(before)
for file in sys.argv[1].split(","):
    said = []
    luthier.train(luthier.check(file), say=said.append)
    after = snapshot()
    changed = [key for key, value in before.items() if after.get(key) is not value]
    print(file, "changed:", changed)
    assert any("2 of 2 layers fused" in line for line in said), (file, said)
    if changed:
        sys.exit(1)
"""
RUNS: dict[str, dict[str, Any]] = {
    "adapters": {"lora": {"rank": 4, "dropout": 0.0}},
    "recomputing": {"lora": {"rank": 4, "dropout": 0.0}, "memory": {"activations": "recompute"}},
    "whole": {"lora": None},
    "pairs": {"method": "dpo", "lora": {"rank": 4, "dropout": 0.0}},
}


def test_runs_patch_nothing(tmp_path: Path) -> None:
    """With every fused path on, in one process; the notes must say that the layers were fused, or it would prove
    nothing. torch.compile is left out: torch then wraps functions of its own."""
    files = []
    for name, changes in RUNS.items():
        config = tiny_config(tmp_path, name, train={"epochs": 1}, checkpoint={"every": None}, **changes)
        if name == "pairs":
            config = tiny_config(
                tmp_path,
                name,
                data={"path": str(write_pairs(tmp_path / "pairs.jsonl")), "eval_path": None},
                eval={"every": None, "samples": 0},
                **changes,
            )
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(dump_config(config))
    command = [sys.executable, "-c", PROGRAM, ",".join(map(str, files)), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def write_pairs(path: Path) -> Path:
    rows = [
        {"prompt": WORDS[i % 7], "chosen": WORDS[i % 5], "rejected": WORDS[-1 - i % 5]} for i in range(16)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

"""A whole run leaves torch, transformers and peft as they were: no function, class or method is replaced."""

import subprocess
import sys
from pathlib import Path

from luthier.config.dump import dump_config
from tiny_runs import tiny_config

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
luthier.train(luthier.check(sys.argv[1]), say=lambda text: None)
after = snapshot()
changed = [key for key, value in before.items() if after.get(key) is not value]
print("changed:", changed)
sys.exit(bool(changed))
"""


def test_a_run_patches_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "run")
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-c", PROGRAM, str(file), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

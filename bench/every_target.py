"""Every form that `luthier export` writes, of a small tuned model, read back and compared with what was trained.

    python -m bench.every_target MODEL [--name NAME] [--adapters lora qlora] [--only gguf:f16 merged ...]
                                 [--prompts 8] [--steps 8] [--template FILE.jinja] [--scratch FOLDER]
                                 [--out FILE.json] [--list]

MODEL is whatever `model:` takes: `demo:smollm2-135m`, a folder, a GGUF file. It is tuned on e-mails of
examples/tickets, with LoRA and with LoRA beside weights in nf4 (QLoRA). Then each form is written as the command writes
it, and the verdict is kept. What was found goes to FILE form by form; what is there already is not done again unless it
failed. In FOLDER the runs are kept; without it they are made anew. What was written is removed when it has been judged.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.watch import ROOT

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 16}},
    "qlora": {"lora": {"rank": 16}, "quant": "nf4"},
}
TYPES = {
    "gguf": (
        *("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"),
        *("q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k", "iq4_nl", "iq4_xs"),
    ),
    "compressed": ("int8", "int4", "fp8"),
}
"""Types that are tried, of forms that must be told one."""
ROWS = 200
"""E-mails that are written to train on, and a quarter of them to compare with."""


@dataclass(frozen=True)
class Trial:
    """What is tuned and written, and where."""

    model: str
    name: str
    steps: int
    prompts: int
    scratch: Path
    template: Path | None
    """A chat template, for models that have none."""

    def run(self, adapter: str) -> Path:
        """The run's folder; it is made if it is not there."""
        folder = self.scratch / f"{self.name}-{adapter}"
        if not (folder / "adapter").is_dir():
            self._tune(folder, adapter)
        return folder

    def _tune(self, folder: Path, adapter: str) -> None:
        import luthier

        data = self.scratch / "data"
        if not data.is_dir():
            sys.path.insert(0, str(ROOT / "examples" / "tickets"))
            import make_tickets  # type: ignore[import-not-found]

            options = ["--out", str(data), "--train", str(ROWS), "--test", str(ROWS // 4)]
            if status := make_tickets.main(options):
                raise SystemExit(status)
        shutil.rmtree(folder, ignore_errors=True)  # one that was cut short
        config = {
            "model": self.model,
            "data": {
                "path": str(data / "train.jsonl"),
                "eval_path": str(data / "test.jsonl"),
                **({"template": str(self.template)} if self.template else {}),
            },
            **ADAPTERS[adapter],
            "optim": {"lr": 1e-3},
            "train": {"steps": self.steps, "tokens_per_step": 384},
            "eval": {"samples": 0},
            "run": {"root": str(self.scratch), "name": folder.name},
        }
        luthier.train(config, say=lambda line: None)


def main(arguments: list[str]) -> int:
    """Writes and compares; returns 1 if a form was refused or failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--name", default="smollm2-135m")
    parser.add_argument("--adapters", nargs="*", default=list(ADAPTERS), choices=list(ADAPTERS))
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--list", action="store_true", help="only the names of all forms")
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(all_forms()))
        return 0
    with TemporaryDirectory() if given.scratch is None else nullcontext(given.scratch) as place:
        scratch = Path(place).absolute()
        scratch.mkdir(parents=True, exist_ok=True)
        trial = Trial(given.model, given.name, given.steps, given.prompts, scratch, given.template)
        found = earlier(given.out) or about(trial)
        for adapter in given.adapters:
            judged = found["forms"].setdefault(f"{trial.name}, {adapter}", {})
            for form in given.only or all_forms():
                if judged.get(form, {}).get("verdict") in (None, "failed"):
                    judged[form] = {**verdict(trial, adapter, form), "commit": commit()}
                    print(f"{trial.name}, {adapter}, {form}: {said(judged[form])}", flush=True)
                    if given.out:
                        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(
        any(
            one["verdict"] in ("different", "failed")
            for all in found["forms"].values()
            for one in all.values()
        )
    )


def all_forms() -> Iterator[str]:
    """Every form, with each type that it is tried in, as `--to` takes it."""
    from luthier.export.forms import known_forms

    for name in known_forms():
        yield from (f"{name}:{kind}" for kind in TYPES[name]) if name in TYPES else (name,)


def earlier(file: Path | None) -> dict[str, Any] | None:
    """What was found before and kept in the file."""
    return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else None


def about(trial: Trial) -> dict[str, Any]:
    """What is measured, with what."""
    from luthier.runs.environment import describe_environment

    return {
        "what": "each form of export of short runs, in the engine that reads it back, against the trained model",
        "date": date.today().isoformat(),
        "model": Path(trial.model).name,
        "training": f"{trial.steps} steps of 384 tokens of examples/tickets",
        "prompts": trial.prompts,
        "machine": describe_environment(),
        "forms": {},
    }


def commit() -> str | None:
    """That of the code: a table may be filled over several."""
    from luthier.runs.environment import describe_environment

    git = describe_environment()["git"]
    return git and git["commit"][:7] + (" and changes" if git["changed"] else "")


def verdict(trial: Trial, adapter: str, form: str) -> dict[str, Any]:
    """Writes one form; what it is compared with the trained model, or why it was not written or compared."""
    import luthier
    from luthier.errors import LuthierError

    run, started = trial.run(adapter), time.monotonic()
    out = trial.scratch / f"written-{adapter}" / form.replace(":", "-")
    heard: list[str] = []
    shutil.rmtree(out.parent, ignore_errors=True)  # of a script that was cut short
    try:
        target = out / "model.gguf" if form.startswith("gguf") else out
        target.parent.mkdir(parents=True, exist_ok=True)
        written = luthier.export_run(run, form, target, prompts=trial.prompts, say=heard.append)
    except LuthierError as error:
        differs = "is not the model that was trained" in str(error)
        return {"verdict": "different" if differs else "failed", "why": str(error), "said": heard}
    finally:
        shutil.rmtree(out.parent, ignore_errors=True)
    seconds = round(time.monotonic() - started)
    if written.verdict is None:
        return {"verdict": "not compared", "why": heard[0], "size": written.size, "seconds": seconds}
    kept = written.verdict.to_json()
    dropped = ("artefact", "bounds", "note", "form", "source")
    return {**{key: value for key, value in kept.items() if key not in dropped}, "seconds": seconds}


def said(found: dict[str, Any]) -> str:
    """One line of it."""
    if "found" not in found:
        return f"{found['verdict']}: {found['why']}"
    kl, size = found["found"]["mean_kl"], found["size"]
    return f"{found['verdict']}, mean KL {kl:.2g}, {size:,} bytes, in {found['engine']}, {found['seconds']} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

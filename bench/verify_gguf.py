"""How near GGUF files of a run are to what it trained, in llama.cpp: size, KL, the same greedy text.

    python -m bench.verify_gguf RUN [--prompts 50] [--converted FILE] [--out FILE.json]

Needs luthier[llama]. FILE is the run's merged model as llama.cpp's own script converts it to f16
(`convert_hf_to_gguf.py --outtype f16` of its source), to be quantised beside ours; absent: without that comparison.
"""

import argparse
import json
import platform
import sys
import time
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.config.load import load_config
from luthier.export.from_run import merge_run
from luthier.export.gguf.any_type import write_any
from luthier.export.gguf.quantise import quantise
from luthier.export.gguf.write import write_gguf
from luthier.export.job import Job
from luthier.export.verify.engines.llama_cpp import InLlamaCpp
from luthier.export.verify.verdict import Trained, judge, table
from luthier.runs.folder import RunFolder
from luthier.training.own_prompts import rows_by
from luthier.training.verify_export import ask_trained

TYPES = ("f16", "q8_0", "q4_k_m", "q4_0")


def main(arguments: list[str]) -> int:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--converted", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    folder = RunFolder.open(given.run)
    config = load_config(folder.config)
    trained = ask_trained(config, folder, "f16", "trained", given.prompts)
    found: dict[str, Any] = {}
    with TemporaryDirectory(dir=folder.path) as scratch:
        merged = Path(scratch) / folder.path.name
        merge_run(
            Job(folder, config, lambda what: nullcontext(lambda done, total, name: None)), merged, wide=True
        )
        for kind in TYPES:
            file = Path(scratch) / f"{kind}.gguf"
            started = time.monotonic()
            write_any(merged, file, kind, lambda where: rows_by(config, where), name=folder.path.name)
            found[kind] = measured(trained, file, kind) | {"seconds_to_write": time.monotonic() - started}
        plain = Path(scratch) / "plain.gguf"
        wide = Path(scratch) / "wide.gguf"
        write_gguf(merged, wide, "f16")
        quantise(wide, plain, "q4_k_m")
        found["q4_k_m, without importance"] = measured(trained, plain, "q4_k_m")
        if given.converted:
            theirs = Path(scratch) / "theirs.gguf"
            quantise(given.converted, theirs, "q4_k_m")
            found["f16, llama.cpp's own conversion"] = measured(trained, given.converted, "f16")
            found["q4_k_m, of llama.cpp's own conversion"] = measured(trained, theirs, "q4_k_m")
    what = {
        "what": f"GGUF files of a run of {config.model.name} against the trained model, in llama.cpp",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU",
        "prompts": f"{len(trained.said)} from {trained.prompts.source}",
        "types": found,
    }
    text = json.dumps(what, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 0


def measured(trained: Trained, file: Path, kind: str) -> dict[str, Any]:
    """The distances that count."""
    verdict = judge(
        trained,
        file,
        kind,
        lambda: InLlamaCpp(file, trained.longest, trained.config),
    )
    print(table(verdict), file=sys.stderr)
    one = verdict.found
    return {
        "bytes": verdict.size,
        "verdict": "same" if verdict.same else verdict.faults,
        "mean_kl_nats": one.mean_kl,
        "top1": one.top1,
        "same_text": one.same_text,
        "ties": one.ties,
        "places": one.places,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

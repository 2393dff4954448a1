"""How near GGUF files of a run are to what it trained, in llama.cpp: size, KL, the same greedy text.

    python -m bench.verify_gguf RUN [--prompts 50] [--answer 24] [--types f16 q8_0] [--scratch FOLDER]
                                [--converted FILE] [--beside FILE ...] [--out FILE.json]

Needs luthier[llama]. FILE is the run's merged model as llama.cpp's own script converts it (`convert_hf_to_gguf.py
--outtype f32` of its source), to be quantised beside ours; absent: without that comparison. Files of others after
`--beside` are measured as they are. In FOLDER everything is kept that was written or measured, the merged model as
`FOLDER/RUN`: what was stopped goes on there. It must be empty or of the same run and numbers.
"""

import argparse
import json
import pickle
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from luthier.config.load import load_config
from luthier.config.tree import Config
from luthier.export.from_run import merge_run
from luthier.export.gguf.any_type import write_any
from luthier.export.gguf.llama import library
from luthier.export.gguf.quantise import quantise
from luthier.export.gguf.write import write_gguf
from luthier.export.job import Job
from luthier.export.verify.bounds import bounds_of, faults
from luthier.export.verify.compare import Distance, distance
from luthier.export.verify.engines._torch import TorchModel
from luthier.export.verify.engines.llama_cpp import InLlamaCpp
from luthier.export.verify.prompts import Prompts
from luthier.export.verify.verdict import Trained, trained_by
from luthier.models.inference import load_for_inference
from luthier.runs.folder import RunFolder
from luthier.training.own_prompts import own_prompts, rows_by

TYPES = ("f16", "q8_0", "q4_k_m", "q4_0")
OTHERS = ("q4_k_m, without importance", "q4_k_m, of llama.cpp's own conversion")
PART = 5
"""Prompts after which what was measured is kept."""
SPARE = 200
"""Tokens by which a prompt may be longer than those of the first part."""


@dataclass(frozen=True)
class Measuring:
    """A run, and where its files and figures lie meanwhile."""

    folder: RunFolder
    config: Config
    scratch: Path
    prompts: int
    answer: int
    converted: Path | None
    beside: Sequence[Path] = ()

    @property
    def merged(self) -> Path:
        """The run's merged model."""
        return self.scratch / self.folder.path.absolute().name

    def parts(self) -> Iterator[Path]:
        """Where each part of what the trained model said lies."""
        return (self.scratch / f"trained-{first}.pickle" for first in range(0, self.prompts, PART))


def main(arguments: list[str]) -> int:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--answer", type=int, default=24)
    parser.add_argument("--types", nargs="*", default=[*TYPES, OTHERS[0]])
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--converted", type=Path)
    parser.add_argument("--beside", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    folder = RunFolder.open(given.run)
    with (
        TemporaryDirectory(dir=folder.path) if given.scratch is None else nullcontext(given.scratch) as place
    ):
        scratch = Path(place)
        scratch.mkdir(parents=True, exist_ok=True)
        config = load_config(folder.config)
        job = Measuring(folder, config, scratch, given.prompts, given.answer, given.converted, given.beside)
        source = ask(job)
        types = [*given.types, *([OTHERS[1]] if given.converted else [])]
        types += [one.name for one in given.beside]
        found = {kind: measured(job, kind) for kind in types}
    text = json.dumps({**about(job, source), "types": found}, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 0


def about(job: Measuring, source: str) -> dict[str, Any]:
    """What was measured with what."""
    return {
        "what": f"GGUF files of a run of {job.config.model.name} against the trained model, in llama.cpp",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU",
        "versions": {"torch": torch.__version__, "llama-cpp-python": library().__version__},
        "prompts": f"{job.prompts} from {source}, answers of up to {job.answer} tokens",
    }


def ask(job: Measuring) -> str:
    """Keeps what the trained model says, and its merged folder; returns where the prompts come from."""
    if not job.merged.is_dir():
        merging = Job(job.folder, job.config, lambda what: nullcontext(lambda done, total, name: None))
        merge_run(merging, job.merged, wide=True)
    if not all(part.is_file() for part in job.parts()):
        loaded = load_for_inference(str(job.folder.path), device="cpu", dtype="float32")
        prompts = own_prompts(job.config, loaded.tokenizer, loaded.template, job.prompts)
        if len(prompts.prompts) < job.prompts:
            raise SystemExit(f"the run's data has only {len(prompts.prompts)} prompts")
        with TorchModel(loaded.model, loaded.tokenizer) as model:
            for number, part in enumerate(job.parts()):
                some = Prompts(prompts.prompts[number * PART : (number + 1) * PART], prompts.source)
                ends = loaded.eos_token_ids
                keep(part, partial(trained_by, model, loaded.model.config, some, job.answer, ends))
    return read(next(job.parts())).prompts.source


def keep(file: Path, make: Callable[[], Any]) -> Any:
    """What lies in the file, which this program wrote itself; it is made if it is not there."""
    if not file.is_file():
        new = file.with_suffix(".partial")
        new.write_bytes(pickle.dumps(make()))
        new.replace(file)
    return read(file)


def read(file: Path) -> Any:
    """What `keep` kept."""
    return pickle.loads(file.read_bytes())


def measured(job: Measuring, kind: str) -> dict[str, Any]:
    """The distances that count, over all parts."""
    file, seconds = written(job, kind)
    found: list[Distance] = []
    first: Trained = read(next(job.parts()))
    with InLlamaCpp(file, first.longest + SPARE, first.config) as engine:
        for part in job.parts():
            place = job.scratch / f"{file.stem}-{part.stem}.pickle"
            said: Trained = read(part)
            found.append(keep(place, partial(distance, said.said, engine, job.answer, said.ends)))
            print(kind, place.stem, found[-1].mean_kl, found[-1].same_text, file=sys.stderr, flush=True)
        wrong = engine.faults()
    one = joined(found)
    told = [*wrong, *faults(one, bounds_of(kind.split(",")[0]))]
    return {
        "bytes": file.stat().st_size,
        "seconds_to_write": seconds,
        "verdict": told or "same",
        **{key: value for key, value in asdict(one).items() if key not in ("first_difference", "spread")},
    }


def written(job: Measuring, kind: str) -> tuple[Path, float]:
    """The file of a type, and how long it took to write; one of others, and nothing."""
    if given := [one for one in job.beside if one.name == kind]:
        return given[0], 0.0
    file = job.scratch / f"{kind.replace(' ', '-').replace(',', '')}.gguf"
    if not file.is_file():
        started = time.monotonic()
        if kind == OTHERS[0]:
            wide = job.scratch / "wide.gguf"
            write_gguf(job.merged, wide, "f32")
            quantise(wide, file, "q4_k_m")
            wide.unlink()
        elif kind == OTHERS[1]:
            assert job.converted is not None
            quantise(job.converted, file, "q4_k_m")
        else:
            name = job.merged.name
            write_any(job.merged, file, kind, lambda where: rows_by(job.config, where), name=name)
        keep(file.with_suffix(".seconds"), lambda: time.monotonic() - started)
    return file, read(file.with_suffix(".seconds"))


def joined(parts: list[Distance]) -> Distance:
    """Parts together: sums, the largest, and means over places."""
    places = sum(one.places for one in parts)

    def total(name: str) -> Any:
        return sum(getattr(one, name) or 0 for one in parts)

    def mean(name: str) -> float:
        return sum(getattr(one, name) * one.places for one in parts) / places

    summed = ("prompts", "places", "clear", "clear_agreed", "same_ids", "same_prompt", "conversations")
    counts = {name: total(name) for name in (*summed, "same_text", "ties", "answer_tokens")}
    means = {name: mean(name) for name in ("mean_kl", "knows", "top1", "spread")}
    most = {name: max(getattr(one, name) for one in parts) for name in ("largest_kl", "largest_difference")}
    return replace(parts[0], **counts, **means, **most)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

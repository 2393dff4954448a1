"""Does the formula that predicts the speed on a Raspberry Pi (`luthier export --to pi`) hold on this machine?

    python -m bench.pi [--model demo:smollm2-135m] [--threads 2] [--rounds 7]

One model is written as GGUF in several types and decodes in llama.cpp (llama-cpp-python). From the speed of one type
follows the bandwidth that llama.cpp reaches here, by the formula of `export/pi/predict.py`; from that the speed of the
others is predicted and compared with what is measured. Beside it stands how fast numpy reads memory.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from luthier.export.gguf.write import planned_sizes, write_gguf
from luthier.export.pi.predict import read_per_token
from luthier.models.load import resolve_model

KINDS = ("f16", "q8_0", "q5_0", "q4_0")
CALIBRATED = "q8_0"
"""The type from whose speed the bandwidth is taken."""
RESULTS = Path(__file__).parent / "results"


def numpy_bandwidth(size: int = 1 << 28, tries: int = 5) -> float:
    """Bytes a second that one thread reads of an array that no cache holds, the best of some tries."""
    values = np.ones(size // 8)
    seconds = []
    for _ in range(tries):
        start = time.process_time()
        values.sum()
        seconds.append(time.process_time() - start)
    return size / min(seconds)


def opened(file: Path, threads: int) -> Any:
    """A file in llama.cpp."""
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    return Llama(str(file), n_ctx=256, n_threads=threads, n_threads_batch=threads, verbose=False)


def decode_speed(model: Any, clock: Callable[[], float], tokens: int = 16) -> float:
    """Tokens a second that llama.cpp writes, once."""
    model.reset()
    model.eval([1])
    start = clock()
    for token in range(tokens):
        model.eval([100 + token])
    return tokens / (clock() - start)


def measured(model: str, threads: int, rounds: int) -> dict[str, Any]:
    """All figures. Types take turns, and the best of each is kept: what else runs here can only slow it down. One
    thread is timed by the processor's own clock, which stands still while others run.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    folder = resolve_model(model, offline=True)
    found: dict[str, Any] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        open_files = {}
        for kind in KINDS:
            file = Path(scratch) / f"{kind}.gguf"
            write_gguf(folder, file, kind)
            found[kind] = {"file": file.stat().st_size, "read": read_per_token(planned_sizes(folder, kind))}
            open_files[kind] = opened(file, threads)
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind, one in open_files.items():
                rates[kind].append(decode_speed(one, clock))
        for one in open_files.values():
            one.close()
    for kind, told in found.items():
        told["measured"], told["median"] = max(rates[kind]), statistics.median(rates[kind])
        told["reached"] = told["read"] * told["measured"]
    bandwidth = found[CALIBRATED]["reached"]
    for told in found.values():
        told["predicted"] = bandwidth / told["read"]
        told["off"] = told["predicted"] / told["measured"] - 1
    return {
        "model": model,
        "threads": threads,
        "clock": clock.__name__,
        "rounds": rounds,
        "load_before": load,
        "numpy_read": numpy_bandwidth(),
        "bandwidth": bandwidth,
        "types": found,
    }


def main(arguments: Sequence[str]) -> int:
    """Prints the figures and keeps them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    known = parser.parse_args(arguments)
    found = measured(known.model, known.threads, known.rounds)
    for kind, told in found["types"].items():
        told_of = f"{told['measured']:.1f} tokens/s, predicted {told['predicted']:.1f} ({told['off']:+.0%})"
        print(
            f"{kind}: {told['read'] / 1e6:.0f} MB a token, {told_of}, reached {told['reached'] / 1e9:.1f} GB/s"
        )
    print(f"numpy reads {found['numpy_read'] / 1e9:.1f} GB/s in one thread")
    path = RESULTS / f"pi-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

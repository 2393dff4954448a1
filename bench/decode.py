"""Where generation's time goes: reading prompts and one token for each of some rows, taken apart by function.

    OMP_NUM_THREADS=1 python -m bench.decode demo:smollm2-135m [--rows 16 64] [--dtype auto]

Times are processor time of the thread that generates, so other programs on the machine change them little; with one
thread that is all of it. What is timed inside something else that is timed counts for both.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.serve import RESULTS, folder
from bench.serve_questions import apart
from luthier.kernels import attention, decode_attention, gated, rms_norm, rotary, skinny_linear
from luthier.models.compat import plain_attention
from luthier.models.decoding.bound import bind
from luthier.models.decoding.cache import BlockCache
from luthier.models.decoding.check import check
from luthier.models.decoding.decoder import BlockDecoder
from luthier.models.inference import Loaded, load_for_inference
from luthier.rollout import live, rows
from luthier.rollout.live import LiveBatch, Order, Speaker
from luthier.rollout.places import BlockPlaces
from luthier.rollout.sampling import SamplingSettings
from luthier.runs.environment import describe_environment

PARTS: tuple[tuple[Any, str, str], ...] = (
    (skinny_linear, "forward", "matrix products"),
    (attention, "attend", "attention over prompts"),
    (decode_attention, "forward", "attention of one token a row"),
    (rms_norm, "forward", "norms"),
    (gated, "forward", "activations"),
    (rotary, "rotate", "rotary embedding"),
    (BlockCache, "write", "writing into the cache"),
    (BlockPlaces, "_first", "looking for common beginnings"),
    (live, "_chosen", "drawing tokens"),
    (live, "log_probability", "log-probabilities over the vocabulary"),
    (rows.Row, "push", "tokens to text"),
)
STEPS = 8
WARM_UP = 2


@contextmanager
def timed_parts() -> Iterator[Counter[str]]:
    """While it holds, adds up what each part takes."""
    spent: Counter[str] = Counter()

    def watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*given, **named)
            finally:
                spent[name] += time.thread_time() - began

        return run

    with ExitStack() as stack:
        for owner, function, name in PARTS:
            stack.enter_context(patch.object(owner, function, watched(getattr(owner, function), name)))
        yield spent


def orders_of(loaded: Loaded, num: int) -> list[Order]:
    """Prompts that share next to nothing, half of the answers greedy, half drawn."""
    assert loaded.template is not None
    found = []
    for number in range(num):
        settings = SamplingSettings(max_new_tokens=64, temperature=0.8 * (number % 2), seed=number)
        prompt = loaded.template.prompt_ids(apart("", number, 1)["messages"], None, None)
        found.append(Order("it", prompt, settings, 64))
    return found


@torch.no_grad()
def taken_apart(loaded: Loaded, num: int) -> dict[str, Any]:
    """Milliseconds of reading `num` prompts, and of one token for each."""
    shape = check(loaded.model).shape
    assert shape is not None, "the model is not decoded from its parts"
    blocks = 8 * num
    decoder = BlockDecoder(bind(loaded.model), shape, blocks)
    places = BlockPlaces(decoder, blocks, loaded.model.device, "it")
    batch = LiveBatch({"it": Speaker(places, frozenset(), loaded.tokenizer)}, most_rows=num)
    orders = orders_of(loaded, num)
    found: dict[str, Any] = {"rows": num, "prompt_tokens": sum(len(order.prompt) for order in orders)}
    with timed_parts() as spent:
        began = time.thread_time()
        batch.join(orders)
        found["reading_ms"] = _shares(spent, time.thread_time() - began)
        for _ in range(WARM_UP):
            batch.step()
        spent.clear()
        began = time.thread_time()
        for _ in range(STEPS):
            batch.step()
        found["step_ms"] = _shares(spent, time.thread_time() - began, STEPS)
    return found


def _shares(spent: Counter[str], total: float, times: int = 1) -> dict[str, float]:
    parts = {name: round(1e3 * seconds / times, 2) for name, seconds in spent.most_common()}
    return {"all": round(1e3 * total / times, 2), **parts}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, or demo:NAME")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    loaded = load_for_inference(folder(options.model), device="cpu", dtype=options.dtype)
    with plain_attention(loaded.model):
        found = [taken_apart(loaded, num) for num in options.rows]
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    result = {"kind": "decode-profile", "date": date, "model": options.model, "dtype": dtype, "found": found}
    result |= {"machine": describe_environment(), "threads": torch.get_num_threads()}
    result["load_average"] = [round(one, 1) for one in os.getloadavg()]
    path = options.out / f"decode-profile-{dtype}-{date}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1), path, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

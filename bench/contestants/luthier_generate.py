"""Luthier's generator as its users get it: greedy, a fixed number of tokens for every prompt."""

import time

from bench.contestants.hf_generate import prompts_of
from bench.protocol import Spec, Wire
from bench.rows import load_rows


def run(spec: Spec, wire: Wire) -> None:
    """Generates for all prompts, twice: the first time, with few tokens, warms up."""
    from luthier.threads import wait_without_spinning

    wait_without_spinning()
    from pathlib import Path

    from luthier.allocator import keep_pages
    from luthier.models.device import pick_device, pick_dtype
    from luthier.models.load import load_model
    from luthier.rollout.native import NativeGenerator
    from luthier.rollout.sampling import SamplingSettings

    device = pick_device(spec["device"])
    if device.type == "cpu":
        keep_pages()  # as `load_for_inference` does
    model = load_model(Path(spec["model"]), pick_dtype("auto", device), device)
    generator = NativeGenerator(model, eos_token_ids=())
    prompts = prompts_of(load_rows(spec["rows"]))
    wire.send("loaded")

    def generate(number: int) -> int:
        start = time.monotonic()
        answers = generator.generate(prompts, SamplingSettings(max_new_tokens=number, temperature=0.0))
        tokens = sum(len(answer.ids) for row in answers for answer in row)
        ids = [answer.ids for row in answers for answer in row]
        wire.step(rows=len(prompts), tokens=tokens, learned=tokens, seconds=time.monotonic() - start, ids=ids)
        return tokens

    generate(4)
    generate(spec["answer"])

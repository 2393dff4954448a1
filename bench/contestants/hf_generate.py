"""transformers' generate: prompts padded on the left into one batch, greedy.

Options: dtype (auto: as stored), cache (absent: the one that grows).
"""

import time
from typing import Any

from bench.protocol import Spec, Wire
from bench.rows import Rows, load_rows

PAD = 1


def prompts_of(rows: Rows) -> list[list[int]]:
    """The prompts of all rows."""
    return [rows.row(index)[0].tolist() for index in range(len(rows))]


def run(spec: Spec, wire: Wire) -> None:
    """Generates for all prompts, twice: the first time, with few tokens, warms up."""
    from bench.contestants.hf_common import own_environment

    own_environment()
    import torch
    from transformers import AutoModelForCausalLM

    options = spec["options"]
    model: Any = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=options["dtype"])
    model.to(spec["device"]).eval()
    prompts = prompts_of(load_rows(spec["rows"]))
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts], device=spec["device"])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=spec["device"])
    more = {"cache_implementation": options["cache"], "disable_compile": True} if options.get("cache") else {}
    wire.send("loaded")
    for number in (4, spec["answer"]):
        start = time.monotonic()
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=number,
            min_new_tokens=number,
            do_sample=False,
            pad_token_id=PAD,
            **more,
        )
        new = found[:, longest:].tolist()
        tokens = sum(map(len, new))
        wire.step(rows=len(prompts), tokens=tokens, learned=tokens, seconds=time.monotonic() - start, ids=new)

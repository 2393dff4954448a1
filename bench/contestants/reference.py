"""The truth for parity: the plain model in fp32, one document a forward pass, the loss written out."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from bench.contestants.checkpoint import ADAPTER
from bench.contestants.luthier_sft import save_gradients
from bench.protocol import Clock, Spec, Wire
from bench.rows import Rows, load_rows

LONG = 1024
"""Documents longer than this are recomputed layer by layer: plain attention would keep their scores of all layers."""


def run(spec: Spec, wire: Wire) -> None:
    """Trains, and tells about every step."""
    from transformers import AutoModelForCausalLM

    rows = load_rows(spec["rows"])
    dtype = getattr(torch, spec["options"].get("dtype", "float32"))
    model: Any = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=dtype, attn_implementation="eager")
    model.to(spec["device"])
    if rows.tokens.max() > LONG:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    if spec["rank"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, Path(spec["model"]) / ADAPTER, is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=spec["lr"], weight_decay=0.0)
    wire.send("loaded")
    clock = Clock(spec)
    for step in range(spec["max_steps"]):
        facts = learn(model, rows, step, spec)
        if step == 0 and spec.get("gradients"):
            save_gradients(model.named_parameters(), Path(spec["gradients"]))
        if not spec.get("no_clip"):
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wire.step(**facts)
        if clock.enough():
            return


def learn(model: Any, rows: Rows, step: int, spec: Spec) -> dict[str, float]:
    """Forward and backward of one step; its loss is the mean over all tokens it learns."""
    chosen = [i % len(rows) for i in range(step * spec["samples"], (step + 1) * spec["samples"])]
    documents = [rows.flat(index) for index in chosen]
    num_learned = sum(int(learned[1:].sum()) for _, learned in documents)
    total = 0.0
    for ids, learned in documents:
        tokens = torch.from_numpy(ids.astype("int64")).to(spec["device"])
        wanted = torch.from_numpy(learned[1:]).to(spec["device"])
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1][wanted]
        loss = cross_entropy(logits.float(), tokens[1:][wanted], reduction="sum") / num_learned
        loss.backward()
        total += float(loss.detach())
    num_tokens = sum(len(ids) for ids, _ in documents)
    return {"loss": total, "rows": len(documents), "tokens": num_tokens, "learned": num_learned}

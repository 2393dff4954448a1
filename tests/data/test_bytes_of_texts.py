"""What bits per byte counts: bytes of what is predicted, once, however a text is cut."""

import math
from pathlib import Path

import pytest
import torch

from luthier.config.data_section import SetSection
from luthier.data.encode import EncodeOptions
from luthier.data.loader import in_order
from luthier.data.pipeline import Plan, Recipe
from luthier.data.prepare import prepare_plan
from luthier.evaluate.loss import evaluate_loss
from luthier.methods.sft import SFT
from luthier.models.policy import Policy
from luthier.parallel.cluster import Cluster
from stream_parts import TOKENIZER
from tiny_models import tiny_smollm

TEXTS = ["a line of words", "straße und ähnliches", "日本語 text", "x" * 90]


def test_bits_per_byte_and_perplexity_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    plan = Plan((SetSection(path=str(tmp_path / "a.txt")),), Recipe(TOKENIZER, EncodeOptions(16), None, ""))
    rows = prepare_plan(plan)
    assert len(rows) > len(TEXTS)  # the last one was cut
    model = tiny_smollm(vocab_size=len(TOKENIZER))
    values = evaluate_loss(Policy(model, "rows"), SFT(), in_order(rows, 64), Cluster(), torch.device("cpu"))
    nll, tokens = 0.0, 0
    with torch.no_grad():
        for index in range(len(rows)):  # each block alone, by the model's own logits
            ids_T = torch.from_numpy(rows.example(index).segments[0].ids).long()
            logp_TV = model(ids_T[None]).logits[0].double().log_softmax(-1)
            nll -= float(logp_TV[:-1].gather(1, ids_T[1:, None]).sum())
            tokens += len(ids_T) - 1
    ids = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    size = sum(len(text.encode()) for text in TEXTS)
    size -= sum(len(TOKENIZER.convert_ids_to_tokens(one[0])) for one in ids)  # a character for each byte
    assert values["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert values["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-4)
    assert values["loss"] == pytest.approx(nll / tokens, rel=1e-4)

"""The laws on a real model: SmolLM2-135M-Instruct, from its GGUF to a merged folder."""

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.data.batch import Example, Segment, collate
from luthier.data.chat import ChatTemplate
from luthier.data.prepare import TokenDataset, prepare
from luthier.export.merge import merge_to_folder
from luthier.models import demo
from luthier.models.adapter_files import load_adapter, save_adapter
from luthier.models.load import load_model, load_tokenizer, resolve_model
from luthier.models.lora import apply_lora
from luthier.models.policy import Policy
from luthier.models.tripwire import choose_policy
from luthier.rollout.native import NativeGenerator
from luthier.rollout.sampling import SamplingSettings

NAME = "demo:smollm2-135m"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        demo.locate(demo.find_demo(NAME)) is None, reason="the demo weights are not installed"
    ),
]


@pytest.fixture(scope="module")
def base() -> Path:
    return resolve_model(NAME)


def fresh(base: Path) -> PreTrainedModel:
    return load_model(base, torch.float32, torch.device("cpu"))


def taught(base: Path) -> PreTrainedModel:
    """The model with an adapter that changes it visibly."""
    model = fresh(base)
    apply_lora(model, rank=8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.02, generator=generator)
    return model


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    file = tmp_path_factory.mktemp("data") / "chats.jsonl"
    answers = (
        "Paris.",
        "Four, since two and two make four.",
        "It is blue because short waves scatter more than long.",
    )
    questions = (
        "What is the capital of France?",
        "2+2?",
        "Why is the sky blue? Answer in one sentence, please.",
    )
    with file.open("w") as out:
        for question, answer in zip(questions, answers, strict=True):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": messages}) + "\n")
    return prepare([file], ChatTemplate(load_tokenizer(NAME)), max_length=256)


def examples(rows: TokenDataset) -> list[Example]:
    return [rows.example(i) for i in range(len(rows))]


def gradients(policy: Policy, batches: list[list[Example]]) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    for batch in map(collate, batches):
        policy.linear_loss(batch, -batch.weight_N)[0].backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def plain_gradients(model: PreTrainedModel, rows: list[Example]) -> dict[str, torch.Tensor]:
    """The oracle: transformers' own logits, one document at a time."""
    loss = torch.zeros((), dtype=model.dtype)
    for example in rows:
        (segment,) = example.segments
        ids = torch.tensor(segment.ids).long()
        logp = torch.log_softmax(model(ids[None]).logits[0, :-1], -1).gather(1, ids[1:, None])[:, 0]
        loss = loss - (torch.tensor(segment.weights)[1:].to(logp.dtype) * logp).sum()
    loss.backward()
    return {f"model.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}


def distance(one: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """Of all gradients together, relative."""
    assert one.keys() == truth.keys()
    difference = torch.stack([(one[name] - truth[name]).norm() for name in truth]).norm()
    return float(difference / torch.stack([gradient.norm() for gradient in truth.values()]).norm())


def test_packed_equals_one_document_at_a_time_and_any_split(base: Path, rows: TokenDataset) -> None:
    """In fp64, because fp32 rounding alone moves these gradients by 1e-5 to 1e-4 on the plain model too."""
    truth = plain_gradients(taught(base).double(), examples(rows))
    policy = Policy(taught(base).double(), "packed")
    for split in ([examples(rows)], [[row] for row in examples(rows)]):
        assert distance(gradients(policy, split), truth) <= 1e-10


def test_the_real_model_takes_the_fast_path(base: Path) -> None:
    choice = choose_policy(fresh(base))
    assert choice.policy.layout == "packed" and not choice.reasons


def test_generation_scores_as_training_does(base: Path, rows: TokenDataset) -> None:
    model = taught(base)
    tokenizer = load_tokenizer(NAME)
    generator = NativeGenerator(model, eos_token_ids=(2,), tokenizer=tokenizer)
    prompts = [
        example.segments[0].ids[: int(np.flatnonzero(example.segments[0].weights)[0])]
        for example in examples(rows)
    ]
    settings = SamplingSettings(max_new_tokens=12, temperature=0.8, seed=3)
    policy = choose_policy(model).policy
    for prompt, (completion,) in zip(prompts, generator.generate(prompts, settings), strict=True):
        ids = torch.tensor([*prompt, *completion.ids])
        weights = (np.arange(len(ids)) >= len(prompt)).astype(np.float32)
        example = Example((Segment(ids.numpy().astype(np.int32), weights),))
        with torch.no_grad():
            logp = policy(collate([example]))
        assert logp.tolist() == pytest.approx(completion.logp, abs=2e-4)


def test_adapter_goes_to_peft_and_back_and_merges_exactly(
    base: Path, rows: TokenDataset, tmp_path: Path
) -> None:
    model = taught(base)
    ids = torch.tensor(examples(rows)[2].segments[0].ids).long()[None]
    with torch.no_grad():
        ours = model(ids).logits
    save_adapter(model, tmp_path / "adapter", base_name="SmolLM2-135M-Instruct")
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(fresh(base), str(tmp_path / "adapter"))(ids).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    again = fresh(base)
    load_adapter(again, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, ours)
    merge_to_folder(base, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        difference = merged(ids).logits - ours
    # the base is stored in bf16, so merged weights are rounded to 8 bits: about 2^-9 of the logits' size
    assert float(difference.norm()) <= 2**-7 * float(ours.norm())
    assert (tmp_path / "merged" / "chat_template.jinja").exists()

"""Reward models: transformers' own forward pass and TRL's loss are the oracles; a run leaves what they load."""

import json
import random
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import luthier.methods
from head_models import tiny_policy, with_head
from luthier.config.plugins import load_plugin
from luthier.data.batch import Batch, Example, collate
from luthier.errors import ConfigError, ModelError
from luthier.methods.base import Scores
from luthier.models.inference import load_for_inference
from luthier.models.value_head import Head
from luthier.runs.metrics import read_metrics, series
from luthier.training.run import run
from method_rows import judged_rows
from tiny_models import tiny_gpt2, tiny_qwen3
from tiny_runs import WORDS, tiny_config

PEERS = Path(__file__).resolve().parents[2] / "bench" / ".venv-peers" / "bin" / "python"
TRL = """
import json, sys, torch
from collections import defaultdict
from types import SimpleNamespace
from trl.trainer.reward_trainer import RewardTrainer
asked = json.load(sys.stdin)
logits = torch.tensor(asked["chosen"] + asked["rejected"])[:, None].requires_grad_()
same = lambda value: value
me = SimpleNamespace(model=SimpleNamespace(training=True), _total_train_tokens=0, _tp_size=1,
    args=SimpleNamespace(center_rewards_coefficient=asked["center"]), _metrics={"train": defaultdict(list)},
    accelerator=SimpleNamespace(gather=same, gather_for_metrics=same))
inputs = {"attention_mask": torch.ones(1), "margin": torch.tensor(asked["margin"])}
class Model(torch.nn.Module):
    def forward(self, **inputs):
        return SimpleNamespace(logits=logits)
loss = RewardTrainer.compute_loss(me, Model(), inputs)
loss.backward()
shown = {name: values[-1] for name, values in me._metrics["train"].items()}
json.dump({"loss": loss.item(), "gradient": logits.grad[:, 0].tolist(), "metrics": shown}, sys.stdout)
"""


def pairs_with_margins(num: int = 4) -> tuple[Batch, list[float]]:
    margins = [0.5, 0.0, 1.25, 2.0][:num]
    rows = judged_rows("pair", num)
    return collate(
        [Example(row.segments, row.row, {"margin": (m, m)}) for row, m in zip(rows, margins, strict=True)]
    ), margins


def write_pairs(path: Path, num_rows: int = 40, seed: int = 0) -> Path:
    """The longer answer is the better one."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(num_rows):
            long, short = (
                " ".join(draw.choice(WORDS) for _ in range(n))
                for n in (draw.randint(6, 9), draw.randint(1, 4))
            )
            file.write(json.dumps({"prompt": draw.choice(WORDS), "chosen": long, "rejected": short}) + "\n")
    return path


@pytest.mark.skipif(not PEERS.exists(), reason="no peers' environment (bench/peers.txt)")
def test_loss_gradient_and_metrics_are_trls() -> None:
    batch, margins = pairs_with_margins()
    reward_Q = torch.randn(8, generator=torch.Generator().manual_seed(4)).requires_grad_()
    asked = {
        "chosen": reward_Q[0::2].tolist(),
        "rejected": reward_Q[1::2].tolist(),
        "margin": margins,
        "center": 0.3,
    }
    done = subprocess.run(
        [str(PEERS), "-c", TRL], input=json.dumps(asked), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout)
    method = load_plugin(luthier.methods, "reward")(center=0.3)
    loss, metrics = method.loss(Scores(torch.zeros(0), values=reward_Q[:, None]), batch)
    (loss / 4).backward()
    assert reward_Q.grad is not None
    assert loss.item() / 4 == pytest.approx(theirs["loss"], rel=1e-6)
    mine = [*reward_Q.grad[0::2].tolist(), *reward_Q.grad[1::2].tolist()]
    assert mine == pytest.approx(theirs["gradient"], rel=1e-5)
    for name, value in metrics.items():
        assert float(value) / (1 if name in method.extremes else 4) == pytest.approx(
            theirs["metrics"][name], rel=1e-6
        ), name


@pytest.mark.parametrize("make", [tiny_qwen3, tiny_gpt2])
def test_rewards_and_gradients_are_those_of_transformers_forward_pass(make) -> None:  # type: ignore[no-untyped-def]
    """Each document alone through AutoModelForSequenceClassification, and Bradley-Terry written out."""
    method = load_plugin(luthier.methods, "reward")(center=0.05)
    head = method.head()
    policy = tiny_policy(head, with_head(head, make), lora=False)
    batch, margins = pairs_with_margins()
    loss, _ = method.loss(Scores(torch.zeros(0), values=policy(batch)), batch)
    loss.backward()
    plain = with_head(head, make)
    starts, expected = batch.starts_S1.tolist(), []
    for path in batch.paths():
        ids = torch.cat([batch.tokens_T[starts[s] : starts[s + 1]] for s in path])
        expected.append(plain(input_ids=ids[None]).logits[0, 0])
    c, r = torch.stack(expected[0::2]), torch.stack(expected[1::2])
    truth = (-F.logsigmoid(c - r - torch.tensor(margins)) + 0.05 * (c + r) ** 2).sum()
    truth.backward()
    torch.testing.assert_close(loss, truth, rtol=1e-4, atol=1e-5)
    for (name, mine), (_, theirs) in zip(
        policy.model.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert mine.grad is not None and theirs.grad is not None, name
        assert float((mine.grad - theirs.grad).norm()) <= 1e-3 * float(theirs.grad.norm()) + 1e-6, name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with an adapter and one of all weights, and the rows they were held to."""
    folder = tmp_path_factory.mktemp("reward")
    tiny_config(folder)  # makes the model
    write_pairs(folder / "train.jsonl")
    write_pairs(folder / "test.jsonl", 12, seed=1)
    with_lora = run(
        tiny_config(folder, "lora", method={"name": "reward"}, train={"epochs": 4}), say=lambda line: None
    )
    whole = run(
        tiny_config(folder, "whole", method={"name": "reward"}, lora=..., optim={"lr": 1e-3}),
        say=lambda line: None,
    )
    return with_lora.folder, whole.folder


def score(model: torch.nn.Module, tokenizer, answer: str) -> float:  # type: ignore[no-untyped-def]
    chat = [{"role": "user", "content": "house"}, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        return float(model(input_ids=ids).logits[0, 0])


def test_a_run_learns_on_pairs_that_it_has_not_seen(trained: tuple[Path, Path]) -> None:
    rows = read_metrics(trained[0] / "metrics.jsonl")
    accuracy = [value for _, value in series(rows, "eval", "accuracy")]
    assert accuracy[-1] is not None and accuracy[-1] >= 0.9


def test_transformers_loads_what_was_trained_and_gives_the_same_scores(trained: tuple[Path, Path]) -> None:
    from luthier.export.heads import merge_head_to_folder

    adapter, model = trained[0] / "adapter", trained[1] / "model"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    with_adapter = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=1)
    merged_folder = trained[0] / "merged"
    merge_head_to_folder(trained[0].parents[1] / "model", adapter, merged_folder)
    merged = AutoModelForSequenceClassification.from_pretrained(merged_folder)
    assert merged.config.id2label == {0: "reward"} and merged.config.pad_token_id is not None
    scores = [score(with_adapter, tokenizer, text) for text in ("red blue green one two three cat", "red")]
    assert scores[0] > scores[1]
    assert scores == pytest.approx(
        [score(merged, tokenizer, t) for t in ("red blue green one two three cat", "red")], abs=1e-4
    )
    whole = AutoModelForSequenceClassification.from_pretrained(model)
    question = {"role": "user", "content": "a"}
    chats = [[question, {"role": "assistant", "content": text}] for text in ("one", "a much longer one")]
    batch = tokenizer.apply_chat_template(chats, return_tensors="pt", return_dict=True, padding=True)
    with torch.no_grad():
        together = whole(**batch).logits[:, 0]
        alone = whole(input_ids=batch["input_ids"][:1][batch["attention_mask"][:1] > 0][None]).logits[0, 0]
    assert float(together[0]) == pytest.approx(float(alone), abs=1e-4)  # padding is not read


def test_a_reward_model_cannot_be_talked_to(trained: tuple[Path, Path]) -> None:
    for folder in trained:
        with pytest.raises(ModelError, match="scores"):
            load_for_inference(str(folder))


def test_metrics_of_answers_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not write"):
        run(tiny_config(tmp_path, method={"name": "reward"}, eval={"metrics": ["exact_match"]}))
    assert not (tmp_path / "runs").exists()


def test_the_head_is_drawn_by_the_seed_alone() -> None:
    head = Head("score", ("reward",))
    torch.manual_seed(5)
    one = with_head(head).state_dict()["score.weight"]
    torch.manual_seed(6)
    assert torch.equal(one, with_head(head).state_dict()["score.weight"])
    assert not torch.equal(one, with_head(head, seed=1).state_dict()["score.weight"])

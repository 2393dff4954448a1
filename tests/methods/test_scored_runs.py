"""Classification, regression, rerankers, process rewards, embeddings: runs learn; transformers loads the result."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import luthier.methods
from head_models import LABELS, tiny_policy, with_head
from luthier.config.plugins import load_plugin
from luthier.data.batch import Batch, collate
from luthier.data.encode_scored import JOINED, QUERY
from luthier.errors import ConfigError, DataError
from luthier.evaluate.loss import evaluate_loss
from luthier.methods.base import Scores
from luthier.parallel.cluster import Cluster
from luthier.runs.metrics import read_metrics, series
from luthier.training.run import Result, run
from scored_rows import scored_rows
from tiny_runs import tiny_config

COLOURS, ANIMALS = "red green blue white black".split(), "cat dog bird fish horse".split()  # noqa: SIM905


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def labelled(num: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    kinds = [draw.randrange(2) for _ in range(num)]
    text = [
        " ".join(draw.choice((COLOURS, ANIMALS)[kind]) for _ in range(draw.randint(1, 4))) for kind in kinds
    ]
    return [{"text": t, "label": ("colour", "animal")[k]} for t, k in zip(text, kinds, strict=True)]


def learn(
    folder: Path, method: dict[str, Any], rows: list[Any], held_out: list[Any], **changes: Any
) -> Result:
    tiny_config(folder)
    write(folder / "train.jsonl", rows)
    write(folder / "test.jsonl", held_out)
    values = {"method": method, "lora": ..., "optim": {"lr": 2e-3}, "train": {"epochs": 6}, **changes}
    return run(tiny_config(folder, **values), say=str)


def accuracies(result: Result) -> list[float]:
    found = series(read_metrics(result.folder / "metrics.jsonl"), "eval", "accuracy")
    return [value for _, value in found if value is not None]


def test_classes_are_found_learned_and_named(tmp_path: Path) -> None:
    result = learn(tmp_path, {"name": "classify"}, labelled(80, 0), labelled(20, 1))
    assert accuracies(result)[-1] >= 0.9
    model = AutoModelForSequenceClassification.from_pretrained(result.trained)
    tokenizer = AutoTokenizer.from_pretrained(result.trained)
    assert model.config.id2label == {0: "animal", 1: "colour"}
    assert model.config.problem_type == "single_label_classification"
    with torch.no_grad():
        said = model(**tokenizer(["red red green", "dog"], return_tensors="pt", padding=True)).logits.argmax(
            -1
        )
    assert said.tolist() == [1, 0]


def test_rows_of_one_class_and_unknown_classes_are_told(tmp_path: Path) -> None:
    rows = [{"text": "a b", "label": "x"}] * 8
    with pytest.raises(DataError, match="the rows have 1 classes"):
        learn(tmp_path, {"name": "classify"}, rows, rows)
    with pytest.raises(DataError, match="none of the classes 'y', 'z'"):
        learn(tmp_path, {"name": "classify", "labels": ["y", "z"]}, rows, rows)


def test_a_reranker_is_used_as_it_was_trained(tmp_path: Path) -> None:
    def rows(num: int, seed: int) -> list[dict[str, Any]]:
        draw = random.Random(seed)
        made = []
        for _ in range(num):
            pair = [draw.choice(COLOURS), draw.choice(ANIMALS)]
            made.append({"query": "animal", "documents": pair, "labels": [0, 1]})
        return made

    result = learn(tmp_path, {"name": "rerank"}, rows(60, 0), rows(10, 1))
    assert accuracies(result)[-1] >= 0.9
    model = AutoModelForSequenceClassification.from_pretrained(result.trained)
    tokenizer = AutoTokenizer.from_pretrained(result.trained)
    texts = [JOINED.format(query="animal", document=text) for text in ("dog", "green")]
    with torch.no_grad():
        good, bad = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0].tolist()
    assert good > 0 > bad


def test_steps_are_judged_at_their_last_tokens(tmp_path: Path) -> None:
    def rows(num: int, seed: int) -> list[dict[str, Any]]:
        draw = random.Random(seed)
        steps = [[draw.choice(COLOURS + ANIMALS) for _ in range(draw.randint(1, 3))] for _ in range(num)]
        return [
            {"prompt": "go", "completions": own, "labels": [step in ANIMALS for step in own]} for own in steps
        ]

    result = learn(tmp_path, {"name": "prm"}, rows(80, 0), rows(20, 1))
    assert accuracies(result)[-1] >= 0.9
    model = AutoModelForTokenClassification.from_pretrained(result.trained)
    tokenizer = AutoTokenizer.from_pretrained(result.trained)
    assert model.config.id2label == {0: "wrong", 1: "right"}
    answer = {"role": "assistant", "content": "cat\n\nred"}
    text = tokenizer.apply_chat_template([{"role": "user", "content": "go"}, answer], tokenize=False)
    found = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    ends = [text.index("cat") + 3, text.index("red") + 3]
    last = [
        max(i for i, (start, _) in enumerate(found["offset_mapping"][0].tolist()) if start < end)
        for end in ends
    ]
    with torch.no_grad():
        said = model(input_ids=found["input_ids"]).logits[0].argmax(-1)
    assert said[last].tolist() == [1, 0]


def pairs(words: list[str], num: int, seed: int) -> list[dict[str, Any]]:
    """A text belongs to the one with the same word at its end, whatever stands before."""
    draw = random.Random(seed)
    filler = lambda: " ".join(draw.choice(["a", "the", "my", "one", "some"]) for _ in range(3))  # noqa: E731
    return [
        {"anchor": f"{filler()} {word}", "positive": f"{filler()} {filler()} {word}"}
        for word in draw.sample(words, num)
    ]


def test_an_embedding_model_beats_its_base_on_held_out_retrieval(tmp_path: Path) -> None:
    syllables = ["ka", "lo", "mi", "ru", "te", "po", "sa", "ne"]
    words = [a + b + c for a in syllables for b in syllables for c in syllables]
    random.Random(2).shuffle(words)
    method = {"name": "embed", "dims": [8]}
    held_out = pairs(words[:64], 48, 1)
    result = learn(
        tmp_path, method, pairs(words[64:], 240, 0), held_out, train={"epochs": 4, "tokens_per_step": 1024}
    )
    tokenizer = AutoTokenizer.from_pretrained(result.trained)

    def accuracy(folder: Path, size: int = 32) -> float:
        model = AutoModel.from_pretrained(folder)
        sides = [
            vectors(model, tokenizer, [row[name] for row in held_out]) for name in ("anchor", "positive")
        ]
        near = F.normalize(sides[0][:, :size], dim=-1) @ F.normalize(sides[1][:, :size], dim=-1).T
        return float((near.argmax(-1) == torch.arange(len(near))).float().mean())

    after = accuracy(result.trained)
    assert after >= accuracy(tmp_path / "model") + 0.15
    assert accuracy(result.trained, 8) >= accuracy(tmp_path / "model", 8)
    assert after == pytest.approx(max(accuracies(result)), abs=0.05)  # the run measures the same thing
    modules = json.loads((result.trained / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]
    settings = json.loads((result.trained / "1_Pooling" / "config.json").read_text())
    assert (
        settings["pooling_mode_lasttoken"]
        and not settings["pooling_mode_mean_tokens"]
        and settings["word_embedding_dimension"] == 32
    )


def vectors(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """As sentence-transformers takes the last token: each text by itself."""
    made = []
    for text in texts:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        made.append(hidden[-1])
    return torch.stack(made)


def documents(batch: Batch) -> Iterator[torch.Tensor]:
    starts = batch.starts_S1.tolist()
    for path in batch.paths():
        yield torch.cat([batch.tokens_T[starts[s] : starts[s + 1]] for s in path])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_infonce_is_that_of_one_large_batch(pooling: str) -> None:
    """Loss and gradients in three micro-batches against plain transformers, one document at a time, and autograd."""
    method = load_plugin(luthier.methods, "embed")(pooling=pooling, temperature=0.3)
    head = method.head()
    policy, plain = tiny_policy(head, lora=False), with_head(head)
    rows = scored_rows("similar", 5)
    parts = [collate(rows[:2]), collate(rows[2:3]), collate(rows[3:])]
    none = torch.zeros(0)
    with torch.no_grad():
        lines = torch.cat([method.preview(Scores(none, values=policy(part)), part) for part in parts])
    step = method.statistics(lines.flip(0), None)
    total = 0.0
    for part in parts:
        loss, _ = method.loss(Scores(none, values=policy(part), step=step), part)
        loss.backward()
        total += loss.item()
    whole = collate(rows)
    hidden = [plain(input_ids=ids[None]).last_hidden_state[0] for ids in documents(whole)]
    unit = F.normalize(torch.stack([h[-1] if pooling == "last" else h.mean(0) for h in hidden]), dim=-1)
    is_query = whole.columns["relevance"] == QUERY
    logits = unit[is_query] @ unit[~is_query].T / 0.3
    target = (whole.columns["relevance"][~is_query] == 1).nonzero()[:, 0]
    truth = F.cross_entropy(logits, target, reduction="sum")
    truth.backward()
    assert total == pytest.approx(truth.item(), rel=1e-4)
    for mine, theirs in zip(policy.model.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert float((mine.grad - theirs.grad).norm()) <= 1e-3 * float(theirs.grad.norm()) + 1e-6


@pytest.mark.parametrize("name", ["classify", "regress", "rerank"])
def test_scores_are_those_of_transformers_and_losses_those_of_torch(name: str) -> None:
    method = load_plugin(luthier.methods, name)()
    head = method.head(LABELS)
    policy, plain = tiny_policy(head, lora=False), with_head(head)
    batch = collate(scored_rows(method.reads, 5))
    loss, _ = method.loss(Scores(torch.zeros(0), values=policy(batch)), batch)
    loss.backward()
    logits = torch.cat([plain(input_ids=ids[None]).logits for ids in documents(batch)])
    if name == "classify":
        truth = F.cross_entropy(logits, batch.columns["label"].long(), reduction="sum")
    elif name == "regress":
        truth = F.mse_loss(logits[:, 0], batch.columns["label"], reduction="sum")
    else:
        truth = F.binary_cross_entropy_with_logits(logits[:, 0], batch.columns["relevance"], reduction="sum")
    truth.backward()
    torch.testing.assert_close(loss, truth, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(policy.model.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert float((mine.grad - theirs.grad).norm()) <= 1e-3 * float(theirs.grad.norm()) + 1e-6


def test_lists_are_compared_within_their_row() -> None:
    """ListNet written out row by row."""
    method = load_plugin(luthier.methods, "rerank")(loss_type="listwise")
    rows = scored_rows("relevance", 6)
    batch = collate(rows)
    z_Q = torch.randn(batch.num_sequences, generator=torch.Generator().manual_seed(0))
    expected, units, at = 0.0, 0, 0
    for row in rows:
        labels = torch.tensor(row.columns["relevance"])
        z = z_Q[at : at + len(labels)]
        at += len(labels)
        if labels.sum() > 0:
            expected -= float((labels / labels.sum() * z.log_softmax(0)).sum())
            units += 1
    loss, _ = method.loss(Scores(torch.zeros(0), values=z_Q[:, None]), batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5) and method.count(batch) == units > 0


def test_held_out_queries_are_compared_with_all_held_out_texts() -> None:
    method = load_plugin(luthier.methods, "embed")()
    policy, rows = tiny_policy(method.head(), lora=False), scored_rows("similar", 6)
    device = torch.device("cpu")
    together = evaluate_loss(policy, method, [collate(rows)], Cluster(), device)
    apart = evaluate_loss(policy, method, [collate([row]) for row in rows], Cluster(), device)
    assert together == pytest.approx(apart, rel=1e-5) and together["loss"] > 0


def test_more_dimensions_than_the_model_has_are_refused(tmp_path: Path) -> None:
    rows = [{"anchor": "a b", "positive": "c d"}, {"anchor": "e", "positive": "f"}]
    with pytest.raises(ConfigError, match=r"method\.dims"):
        learn(tmp_path, {"name": "embed", "dims": [64]}, rows, rows)

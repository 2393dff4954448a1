"""Distillation across tokenizers: sorted distances, what begins at the same place, a run with two vocabularies."""

import json
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import luthier
from chat_samples import PLAIN_TOKENS, TEXT, byte_level, sentence_piece
from luthier.config.tree import Config
from luthier.data.batch import Example, Segment, collate
from luthier.data.other_tokens import OtherTokens
from luthier.data.sharing import share_prefixes
from luthier.evaluate.scoring import Scorer
from luthier.kernels.divergence import LOWEST, SortedDistance, log_softmax
from luthier.kernels.teacher import SortedTokens, TeacherLogits, of_logits, token_divergence
from luthier.kernels.top_tokens import top_tokens
from luthier.methods.uld import Uld
from luthier.models.cross_teacher import CrossTeacher
from luthier.models.tripwire import choose_policy
from luthier.parallel.cluster import Cluster
from luthier.runs.metrics import read_metrics
from tiny_models import VOCAB, tiny_llama
from tiny_runs import tiny_config
from training_parts import SameTokens, chat_rows

PEERS = Path(__file__).resolve().parents[2] / "bench" / ".venv-peers" / "bin" / "python"


def by_hand(p: Tensor, q: Tensor) -> Tensor:
    """Σ |p_(i) - q_(i)| of each row, the shorter one filled up with nothing."""
    size = max(p.shape[1], q.shape[1])
    ordered = [
        torch.nn.functional.pad(x.sort(-1, descending=True).values, (0, size - x.shape[1])) for x in (p, q)
    ]
    return (ordered[0] - ordered[1]).abs().sum(-1)


def sorted_tokens(logits: Tensor, k: int, temperature: float = 1.0) -> SortedTokens:
    return SortedTokens(top_tokens(TeacherLogits(logits), k, temperature).logp_NK1)


@pytest.mark.parametrize("sizes", [(11, 11), (7, 11), (13, 11)])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_distance_is_that_of_the_sorted_probabilities(sizes: tuple[int, int], temperature: float) -> None:
    torch.manual_seed(0)
    teacher, student = (2 * torch.randn(6, size).double() for size in sizes)
    student.requires_grad_()
    true = by_hand((teacher / temperature).softmax(-1), (student / temperature).softmax(-1))
    (gradient,) = torch.autograd.grad(true.sum(), student)
    last = torch.zeros(6).double()
    for k in (1, 3, min(sizes)):
        measure, none = SortedDistance(k, temperature), torch.zeros(6).long()
        _, found = of_logits(student, none, sorted_tokens(teacher, k, temperature), measure)
        assert bool((found >= last - 1e-12).all()) and bool((found <= true + 1e-12).all())
        last = found.detach()
    torch.testing.assert_close(found, true)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), student)[0], gradient)


def test_a_teacher_that_says_nothing_teaches_nothing() -> None:
    hidden, weight = torch.randn(3, 4).double().requires_grad_(), torch.randn(9, 4).double()
    line = log_softmax(torch.randn(3, 6).double(), 1.0).sort(descending=True).values
    line[1] = LOWEST
    _, found = token_divergence(
        hidden, weight, None, torch.zeros(3).long(), SortedTokens(line), SortedDistance(5)
    )
    found.sum().backward()
    assert (
        hidden.grad is not None
        and float(found[1].detach()) == 0
        and float(hidden.grad[1].abs().max()) < 1e-12
    )
    assert float(hidden.grad[0].abs().max()) > 1e-6


def smaller() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with fewer merges, so that it cuts words elsewhere."""
    backend = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    fresh = Tokenizer(models.BPE())
    fresh.normalizer, fresh.pre_tokenizer, fresh.decoder = (
        backend.normalizer,
        backend.pre_tokenizer,
        backend.decoder,
    )
    alphabet = sorted(token for token in byte_level().get_vocab() if len(token) == 1)
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    fresh.train_from_iterator(TEXT * 2, trainer)
    fresh.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<s>", "<|im_start|>", "<end>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fresh, eos_token="<end>", bos_token="<s>", pad_token="<end>"
    )


def places(tokenizer: PreTrainedTokenizerFast, ids: list[int], special: set[int]) -> list[int]:
    """The byte at which each token begins, from the text of what is before it; special tokens are one byte."""
    found, before = [], 0
    run: list[int] = []
    for token in ids:
        if token in special:
            before += len(str(tokenizer.decode(run)).encode()) + 1
            found.append(before - 1)
            run = []
            continue
        found.append(before + len(str(tokenizer.decode(run)).encode()))
        run.append(token)
    return found


@pytest.mark.parametrize(
    "text", ["The quick brown wordless fox, and spaces.", "hello\n\n  assistant: (1234)"]
)
def test_tokens_meet_where_both_begin(text: str) -> None:
    ours, theirs = smaller(), byte_level()
    eos, start = (ours.get_vocab()[word] for word in ("<end>", "<|im_start|>"))
    assert isinstance(theirs.eos_token_id, int)
    ids = [start, *ours(text)["input_ids"], eos, *ours("more words")["input_ids"]]
    reading = OtherTokens(ours, theirs)(ids)
    read = reading.ids.tolist()
    assert theirs.eos_token_id in read and theirs.get_vocab()["<|im_start|>"] == read[0]
    mine = places(ours, ids, {start, eos})
    other = places(theirs, read, {read[0], theirs.eos_token_id})
    expected = [other.index(place) if place in other else -1 for place in mine]
    assert reading.partner.tolist() == expected and {-1, *range(3)} < set(expected)


def word_pieces() -> PreTrainedTokenizerFast:
    """Text whose spaces are ▁, and a decoder that undoes it."""
    backend = Tokenizer.from_str(sentence_piece().backend_tokenizer.to_str())
    undone = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(undone)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>")


def test_a_word_piece_tokenizer_reads_and_is_read() -> None:
    ours, theirs = byte_level(), word_pieces()
    text = "The lazy dog sleeps, naïve café"
    ids = ours(text)["input_ids"]
    there = OtherTokens(ours, theirs)(ids)
    assert there.partner[0] >= 0 and np.mean(there.partner >= 0) > 0.3
    back = OtherTokens(theirs, ours)(theirs(text, add_special_tokens=False)["input_ids"])
    assert np.mean(back.partner >= 0) > 0.3 and ours.decode(back.ids.tolist()) == text
    odd = [*ids[:3], ours.get_vocab()["Ã"], *ids[3:]]  # half a character: no text
    assert set(OtherTokens(ours, theirs)(odd).partner.tolist()) == {-1}
    assert PLAIN_TOKENS[0] in ours.get_added_vocab()


def test_with_itself_as_the_teacher_the_first_step_is_that_of_the_data() -> None:
    policy, twin = (choose_policy(tiny_llama()).policy for _ in range(2))
    batch, method = collate(chat_rows(4).examples), Uld()
    teacher = CrossTeacher(twin, SameTokens(), VOCAB, 1.0)
    loss, scores = Scorer(policy, method, None, Cluster(), teacher).linear(batch, method.coefficients(batch))
    assert float(loss.detach()) == pytest.approx(-float((batch.weight_N * scores.logp_N).sum()), rel=1e-6)
    assert scores.divergence_N is not None and float(scores.divergence_N.abs().max()) < 1e-6


@pytest.mark.parametrize("shared", [False, True])
def test_the_step_is_that_of_the_formula_on_plain_logits(shared: bool) -> None:
    ours, theirs = smaller(), byte_level()
    student = tiny_llama(vocab_size=len(ours))
    larger = tiny_llama(seed=3, hidden_size=48, vocab_size=len(theirs))
    begin = "system: You are a helpful assistant. user: hello there. "
    documents = [
        ours(begin + end)["input_ids"] for end in ("assistant: hi!", "The wordless dog", "Paris, 3 days")
    ]
    rows = []
    for row, ids in enumerate(documents):
        weights = np.zeros(len(ids), np.float32)
        weights[-5:] = 1 + 0.5 * row
        rows.append(Example((Segment(np.array(ids, np.int32), weights),), row=row))
    batch = share_prefixes(collate(rows)) if shared else collate(rows)
    assert len(batch.parent_S) == (4 if shared else 3)
    method, read = Uld(weight=0.7, temperature=1.3), OtherTokens(ours, theirs)
    total, met = torch.zeros((), dtype=torch.float64), 0
    for row, ids in enumerate(documents):
        reading = read(ids)
        q = student(torch.tensor([ids])).logits[0].double()
        p = larger(torch.tensor(reading.ids[None], dtype=torch.int64)).logits[0].double().detach()
        for place in range(len(ids) - 5, len(ids)):
            nll = -q[place - 1].log_softmax(-1)[ids[place]]
            partner = int(reading.partner[place])
            apart = torch.zeros(1).double()
            if partner > 0:
                met += 1
                logits = (p[partner - 1][None] / 1.3, q[place - 1][None] / 1.3)
                apart = by_hand(*(x.softmax(-1) for x in logits))
            total = total + (1 + 0.5 * row) * (nll + 0.7 * apart[0])
    assert 3 < met < 15
    trained = list(student.parameters())[-2:]
    true = torch.autograd.grad(total, trained)
    k = min(len(ours), len(theirs))
    teacher = CrossTeacher(choose_policy(larger).policy, read, k, 1.3)
    scorer = Scorer(choose_policy(student).policy, method, None, Cluster(), teacher)
    for loss in (
        method.loss(scorer(batch), batch)[0],
        scorer.linear(batch, method.coefficients(batch))[0],
    ):
        assert loss.item() == pytest.approx(total.item(), rel=1e-5)
        for gradient, expected in zip(torch.autograd.grad(loss, trained), true, strict=True):
            assert float((gradient - expected).norm()) <= 1e-3 * float(expected.norm())


def crossing(folder: Path, name: str, **changes: Any) -> Config:
    """A short run whose teacher has another tokenizer."""
    tiny_config(folder, name)
    teacher, tokenizer = folder / "teacher", smaller()
    if not teacher.exists():
        larger = tiny_llama(seed=3, hidden_size=48, vocab_size=len(tokenizer), max_position_embeddings=1024)
        larger.save_pretrained(teacher)
        tokenizer.save_pretrained(teacher)
    given = {
        "method": "uld",
        "teacher": {"name": str(teacher)},
        "lora": ...,
        "optim": {"lr": 3e-3},
        **changes,
    }
    return tiny_config(folder, name, **given)


def test_a_run_learns_across_vocabularies_live_or_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    losses = {}
    section = {"name": str(tmp_path / "teacher")}
    for name, more in (("live", {}), ("once", {"top_k": 256}), ("again", {"top_k": 256})):
        told: list[str] = []
        run = luthier.train(crossing(tmp_path, name, teacher=section | more), say=told.append).folder
        assert any("% of what is learned begins where a token of its own does" in line for line in told)
        kept = sum("taken from disk" in line for line in told)
        assert kept == (2 if name == "again" else 0)
        rows = read_metrics(run / "metrics.jsonl")
        losses[name] = [row["loss"] for row in rows if row["kind"] == "train"]
        held_out = [row for row in rows if row["kind"] == "eval"]
        assert held_out[-1]["loss"] < held_out[0]["loss"] and 0 < held_out[-1]["distance"] < 2
    assert losses["once"] == pytest.approx(losses["live"], rel=1e-3) and losses["again"] == losses["once"]


TRL = """
import json, sys, torch
from types import SimpleNamespace
from trl.experimental.gold.gold_trainer import ULDLoss
asked = json.load(sys.stdin)
config = SimpleNamespace(
    uld_crossentropy_weight=asked["ce"], uld_distillation_weight=asked["weight"], uld_skip_student_eos=False,
    uld_student_temperature=asked["temperature"], uld_teacher_temperature=asked["temperature"],
    uld_skip_teacher_eos=False, use_extended_uld=False, uld_token_merge_strategy="bayesian",
)
student, teacher = (torch.tensor(asked[name]) for name in ("student", "teacher"))
student.requires_grad_()
labels = torch.tensor(asked["labels"])
loss = ULDLoss(config)(student, teacher, labels, labels, labels.clamp(min=0), labels.clamp(min=0))
loss.backward()
json.dump({"loss": loss.item(), "gradient": student.grad.tolist()}, sys.stdout)
"""


@pytest.mark.skipif(not PEERS.exists(), reason="no peers' environment (bench/peers.txt)")
def test_value_and_gradient_are_trls_where_every_token_meets() -> None:
    """One answer, cut alike by both: TRL's mean over its tokens, each compared where it is predicted."""
    draw = torch.Generator().manual_seed(2)
    student, teacher = 2 * torch.randn(1, 6, 13, generator=draw), 2 * torch.randn(1, 6, 17, generator=draw)
    labels = torch.tensor([[-100, -100, 3, 4, 5, 1]])
    asked = {"student": student.tolist(), "teacher": teacher.tolist(), "labels": labels.tolist()}
    more = {"ce": 1.0, "weight": 1.5, "temperature": 0.8}
    done = subprocess.run(
        [str(PEERS), "-c", TRL], input=json.dumps(asked | more), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout)
    mine = student.clone().requires_grad_()
    target = labels[0, 2:]
    measure = SortedDistance(13, 0.8)
    logp, apart = of_logits(mine[0, 1:5], target, sorted_tokens(teacher[0, 1:5], 13, 0.8), measure)
    loss = (1.5 * apart - logp).mean()
    loss.backward()
    assert loss.item() == pytest.approx(theirs["loss"], rel=1e-5)
    torch.testing.assert_close(mine.grad, torch.tensor(theirs["gradient"]), rtol=1e-4, atol=1e-6)
    assert len(list(pairwise(labels[0]))) == 5

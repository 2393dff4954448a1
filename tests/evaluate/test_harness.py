"""Tasks of lm-eval on a tiny model, from local files, against plain transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.cli.main import main
from luthier.errors import ConfigError
from luthier.evaluate import harness
from luthier.models.inference import Loaded, load_for_inference
from luthier.rollout.sampling import SamplingSettings
from tiny_runs import save_tiny_model

CHOICES = ["red", "green blue", "three"]
QUESTIONS = ["one two", "cat dog bird", "house", "small stone large", "river one"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(model: Path) -> Loaded:
    return load_for_inference(str(model))


def plain(model: Path, loaded: Loaded, context: str, text: str) -> tuple[float, bool]:
    """ln p of a continuation by plain transformers."""
    tokenizer = loaded.tokenizer
    before = tokenizer(context, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([tokenizer(context + text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits[
            0, len(before) - 1 : -1
        ]
    target = ids[0, len(before) :]
    logp = torch.log_softmax(logits, -1).gather(1, target[:, None])
    return float(logp.sum()), bool((logits.argmax(-1) == target).all())


def test_continuations_are_scored_as_plain_transformers_does(model: Path, loaded: Loaded) -> None:
    requests = harness.Requests(loaded)
    pairs = [(question, f" {choice}") for question in QUESTIONS for choice in CHOICES]
    for (context, text), (logp, top) in zip(pairs, requests.continuations(pairs), strict=True):
        wanted = plain(model, loaded, context, text)
        assert logp == pytest.approx(wanted[0], rel=1e-4) and top == wanted[1]
    blank = requests.continuations([("one ", "red"), ("one", " red")])
    assert blank[0] == pytest.approx(blank[1])


def test_answers_are_the_generator_s_in_the_order_of_requests(loaded: Loaded) -> None:
    requests = harness.Requests(loaded)
    asked = [("one two", "e", 6), ("cat", "", 3), ("red", "e", 6)]
    found = requests.answers([(text, {"until": [stop], "max_gen_toks": most}) for text, stop, most in asked])
    for (text, stop, most), answer in zip(asked, found, strict=True):
        own = SamplingSettings(max_new_tokens=most, stop=(stop,) if stop else ())
        assert answer == requests.generator.generate([requests._ids(text)], own)[0][0].text


def test_a_whole_text_is_the_sum_of_its_windows(loaded: Loaded) -> None:
    requests = harness.Requests(loaded)
    text = " ".join(QUESTIONS)
    whole = requests.texts([text, "one"])
    assert whole[0] == pytest.approx(requests.continuations([("", text)])[0][0], rel=1e-5)
    requests.longest = 9
    ids = requests._ids(text)
    parts = requests.texts([text])[0]
    known = 0.0
    for start in range(0, len(ids), 8):
        window = [requests.first, *ids][start : start + 9]
        known += requests._scored([(window, len(window) - 1)])[0][0]
    assert parts == pytest.approx(known, rel=1e-5) and parts != pytest.approx(whole[0], rel=1e-5)


def test_without_the_library_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    assert main(["evaluate", "no/such/model", "--task", "arc_easy"]) == 2
    assert "pip install 'luthier[lm-eval]'" in capsys.readouterr().err
    assert main(["evaluate", "no/such/model", "--task", "arc_easy", "--data", "x"]) == 2
    assert "--task brings rows" in capsys.readouterr().err


def test_a_local_task(
    model: Path,
    loaded: Loaded,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": question, "choices": CHOICES, "answer": place % 3}
        for place, question in enumerate(QUESTIONS)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "tiny.yaml"
    file.write_text(
        "task: tiny_choice\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    assert main(["evaluate", str(model), "--task", str(file), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["tasks"]
    right = 0
    for row in rows:
        logps = [plain(model, loaded, row["question"], f" {choice}")[0] for choice in CHOICES]
        right += logps.index(max(logps)) == row["answer"]
    assert found["task"] == "tiny_choice" and found["metric"] == "acc"
    assert found["value"] == pytest.approx(right / len(rows))
    with pytest.raises(ConfigError, match="knows no task"):
        harness.run_tasks(loaded, ["no_such_task_at_all"])
    with pytest.raises(ConfigError, match="there is no file"):
        harness.run_tasks(loaded, ["no.yaml"])
    file.write_text("dataset_path: json\n")
    with pytest.raises(ConfigError, match="does not say"):
        harness.run_tasks(loaded, [str(file)])

"""The real SmolLM2-135M, tuned: its GGUF files in llama.cpp are the model that was trained."""

import json

import pytest

import luthier
from luthier.cli.main import main
from luthier.export.gguf.llama import installed
from luthier.models import demo
from luthier.runs.folder import RunFolder

NAME = "demo:smollm2-135m"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        demo.locate(demo.find_demo(NAME)) is None, reason="the demo weights are not installed"
    ),
    pytest.mark.skipif(not installed(), reason="llama-cpp-python is not installed"),
]
WORDS = ["river", "house", "green", "quick", "letter", "stone", "paper", "wind", "table", "seven"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A few steps of LoRA."""
    root = tmp_path_factory.mktemp("smollm")
    with (root / "rows.jsonl").open("w") as file:
        for number in range(80):
            words = [WORDS[number % 10], WORDS[number // 10], WORDS[(3 * number + 1) % 10]]
            question = f"Put these words into one sentence, number {number}: {', '.join(words)}."
            answer = f"The {words[0]} and the {words[1]} are near the {words[2]}."
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    config = {
        "model": NAME,
        "data": {"path": str(root / "rows.jsonl"), "eval_rows": 50},
        "lora": {"rank": 8},
        "optim": {"lr": 1e-3},
        "train": {"steps": 4, "tokens_per_step": 256},
        "run": {"root": str(root / "runs"), "name": "tuned"},
        "eval": {"samples": 0},
    }
    result = luthier.train(config, say=lambda line: None)
    return RunFolder.open(result.folder)


@pytest.mark.parametrize(("kind", "most"), [("f16", 1e-3), ("q8_0", 1e-2), ("q4_k_m", None)])
def test_the_file_is_the_trained_model(kind: str, most: float | None, run: RunFolder) -> None:
    assert main(["export", str(run.path), "--to", f"gguf:{kind}", "--verify-prompts", "50"]) == 0
    told = json.loads((run.path / "verification" / f"gguf-{kind}.json").read_text())
    found = told["found"]
    assert told["verdict"] == "same" and told["engine"].startswith("llama.cpp")
    assert found["prompts"] == found["same_ids"] == found["same_prompt"] == 50
    if most is not None:
        assert found["mean_kl"] <= most
    if kind == "f16":
        assert found["same_text"] + found["ties"] == 50 and found["same_text"] >= 47

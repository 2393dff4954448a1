"""Variants side by side: the same rows, paired differences, sizes, and what is refused before anything is loaded."""

import json
from pathlib import Path

import pytest

import luthier
from gguf_models import byte_merging
from luthier.cli.main import main
from luthier.errors import ConfigError
from luthier.evaluate.compare import difference_table, human_size, laid_out
from luthier.evaluate.intervals import difference
from luthier.evaluate.likelihood import loss_of
from luthier.evaluate.task import evaluate
from luthier.evaluate.variants import DECODED, LLAMA_CPP, variants_of
from luthier.export.gguf.llama import installed
from luthier.models.inference import load_for_inference
from tiny_models import tiny_llama
from tiny_runs import tiny_config, write_chats


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short LoRA run with its merged model and a GGUF file of it."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = byte_merging()  # llama.cpp has its rule
    settings = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    tiny_llama(**settings, max_position_embeddings=512).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_chats(folder / "train.jsonl")
    write_chats(folder / "test.jsonl", 10, seed=1)
    config = tiny_config(folder, eval={"samples": 0})
    found = luthier.train(config, say=lambda text: None).folder
    assert main(["export", str(found), "--to", "merged", "--no-verify"]) == 0
    assert main(["export", str(found), "--to", "gguf:f32", "--no-verify"]) == 0
    write_chats(folder / "long.jsonl", 12, seed=5)
    return Path(found)


def test_the_table_of_variants(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = (run / "gguf").glob("*.gguf")
    data = str(run.parents[1] / "long.jsonl")
    command = [
        "evaluate",
        str(run),
        "--data",
        data,
        "--answer-tokens",
        "6",
        "--metric",
        "token_f1",
        "--compare",
    ]
    capsys.readouterr()
    assert main([*command, "base", "adapter", "merged", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["variants"]
    base, adapter, merged, gguf = told
    assert [one["variant"] for one in told] == ["base", "adapter", "merged", file.stem]
    assert base["loss"] > adapter["loss"] + 0.1 and "minus_first" not in base
    for one in (merged, gguf):
        assert one["loss"] == pytest.approx(adapter["loss"], rel=1e-3)
    assert adapter["bytes"] > base["bytes"] > 0 and gguf["bytes"] == file.stat().st_size
    assert gguf["engine"] == (LLAMA_CPP if installed() else DECODED) and base["tokens_per_second"] > 0
    minus = adapter["minus_first"]["loss"]
    assert minus["value"] == pytest.approx(adapter["loss"] - base["loss"]) and minus["rows"] == 12
    assert minus["low"] <= minus["value"] <= minus["high"] < 0
    assert adapter["intervals"]["loss"][0] < adapter["loss"] < adapter["intervals"]["loss"][1]
    assert len(list((run / "evaluations").glob("*.jsonl"))) == 4
    assert main(command) == 0  # those that there are; what is known is not computed again
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[1:5]] == ["base", "adapter", "merged", file.stem]
    assert out[6].startswith("minus base") and "*" in out[7] and "95 % intervals" in out[11]
    assert len(list((run / "evaluations").glob("*.jsonl"))) == 4


def test_differences_are_those_of_plain_numbers(run: Path) -> None:
    data = run.parents[1] / "long.jsonl"
    found = [
        evaluate(load_for_inference(str(run), adapter=adapter), [data], metric_names=[])
        for adapter in (False, True)
    ]
    range_ = difference(found[1].sums["loss"], found[0].sums["loss"])
    assert range_ is not None and range_.high < 0
    assert found[0].keys == found[1].keys == {"loss": tuple(f"{row}.1" for row in range(12))}


def test_what_cannot_be_compared_is_told_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a form of a run"):
        variants_of(str(tmp_path), ["merged"])
    with pytest.raises(ConfigError, match="compared with itself"):
        variants_of(str(run), ["base", "base"])
    with pytest.raises(ConfigError, match="is no file"):
        variants_of(str(run), ["x.gguf"])
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"no merged model; write it first: luthier export .* --to merged"):
        variants_of(str(tmp_path), ["merged"])
    with pytest.raises(ConfigError, match="has no adapter"):
        variants_of(str(tmp_path), ["adapter"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "there are no rows to measure on"),
        (["merged", "--data", "x"], "add --compare"),
        (["--compare", "--base", "--data", "x"], "--base is one of the variants"),
        (["--data", "x", "--metric", "regex:("], "is no regular expression"),
    ],
)
def test_wrong_commands(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "no/such/run", *options]) == 2
    assert told in capsys.readouterr().err


def test_a_metric_reads_a_column_of_the_row(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "code.jsonl"
    rows = [
        {"prompt": "one", "completion": "two", "tests": ["assert True"]},
        {"prompt": "red", "completion": "cat", "tests": "assert False"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "evaluate",
        str(run),
        "--data",
        str(data),
        "--answer-tokens",
        "1",
        "--json",
        "--out",
        str(tmp_path),
    ]
    assert main([*command, "--metric", "code:test"]) == 2
    assert "has no column 'test'" in capsys.readouterr().err
    assert main([*command, "--metric", "code:tests"]) == 0
    assert json.loads(capsys.readouterr().out)["code:tests"] in (0.0, 0.5)


def test_how_tables_look() -> None:
    assert laid_out([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"
    assert [human_size(size) for size in (12, 1500, 269_000_000)] == ["12 B", "1.5 kB", "269.0 MB"]
    assert loss_of([]).parts_RK.shape == (0, 2) and difference_table.__doc__

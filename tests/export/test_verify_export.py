"""`luthier export` compares what it wrote with what was trained, and never calls another model a success."""

import json
from collections.abc import Sized
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier
from gguf_models import saved
from lora_models import teach
from luthier.cli.main import main
from luthier.config.load import load_config
from luthier.errors import RunError
from luthier.export.merge import merge_to_folder
from luthier.export.verify.bounds import AS_DECODED, FEW, SIXTEEN, bounds_of, faults
from luthier.export.verify.compare import Distance, Said, distance, divergence
from luthier.export.verify.prompts import OUR_WORDS, Prompt
from luthier.models.adapter_files import save_adapter
from luthier.models.inference import load_for_inference
from luthier.models.lora import apply_lora
from luthier.runs.folder import RunFolder
from luthier.training.own_prompts import own_prompts, own_rows
from luthier.training.verify_export import verify_export

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Question {n}: why?"},
            {"role": "assistant", "content": f"Because {n}."},
        ]
    }
    for n in range(40)
]


def finished(root: Path, data: str = "", rows: list[dict] = ROWS) -> RunFolder:
    """A run on a tiny base model, as training leaves it."""
    model = saved("qwen3", root / "base", tie_word_embeddings=True)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = f"model: {root / 'base'}\nlora: {{rank: 2}}\ndata: {{path: {root / 'rows.jsonl'}{data}}}\n"
    folder = RunFolder.create(root / "runs", "tiny", config_yaml=config)
    apply_lora(model, rank=2)
    teach(model)
    save_adapter(model, folder.adapter, base_name=str(root / "base"))
    return folder


def written(folder: RunFolder, name: str) -> dict:
    return json.loads((folder.path / "verification" / name).read_text())


def test_a_merged_folder_is_proven_and_the_proof_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path)
    assert main(["export", str(folder.path), "--verify-prompts", "5"]) == 0
    out = capsys.readouterr().out
    assert "5 prompts from rows that were trained on" in out
    assert f"Verdict: {folder.path / 'merged'} is the model that was trained." in out
    told = written(folder, "merged.json")
    assert told["verdict"] == "same" and told["found"]["mean_kl"] < 1e-6 and told["found"]["top1"] == 1
    assert told["found"]["same_text"] + told["found"]["ties"] == told["found"]["prompts"] == 5
    assert told["found"]["same_prompt"] == 5


def test_from_python_it_gives_the_verdict(tmp_path: Path) -> None:
    folder, told = finished(tmp_path), []
    found = luthier.export_run(folder.path, prompts=2, say=told.append)
    assert found.path == folder.path / "merged" and found.size > 100_000
    assert found.verdict is not None and found.verdict.same and found.verdict.found.prompts == 2
    assert any("is the model that was trained" in text for text in told)
    again = luthier.export_run(folder.path, out=tmp_path / "other", prompts=0, say=told.append)
    assert again.verdict is None and told[-1] == "Not verified: it was not asked for."


def test_an_adapter_is_the_same_in_peft_and_another_one_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = finished(tmp_path)
    config = load_config(folder.config)
    assert verify_export(config, folder, folder.adapter, "adapter", say=lambda text: None).same
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.adapter.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    told = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(told | {"lora_alpha": 3 * told["lora_alpha"]}))
    with pytest.raises(RunError, match="not the model that was trained"):
        verify_export(config, folder, other, "adapter", say=lambda text: None)
    assert not other.exists() and (tmp_path / "other.unverified").is_dir()
    assert written(folder, "adapter.json")["verdict"] == "different"


def test_without_peft_an_adapter_is_written_and_told_not_to_be_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.export.verify.engines.peft.installed", lambda: False)
    folder = finished(tmp_path)
    assert main(["export", str(folder.path), "--to", "adapter"]) == 0
    out = capsys.readouterr().out
    assert "Not verified: PEFT, which loads an adapter, is not installed" in out and "luthier[peft]" in out
    assert "Verdict" not in out and not (folder.path / "verification").exists()
    assert (folder.path / "adapter-export" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("what", ["weights", "tokenizer"])
def test_a_folder_that_is_another_model_is_marked_and_is_an_error(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished(tmp_path)

    def badly(base: Path, adapter: Path, out: Path, **settings: object) -> None:
        merge_to_folder(base, adapter, out, **settings)  # type: ignore[arg-type]
        if what == "weights":
            tensors = load_file(out / "model.safetensors")
            name = "model.layers.1.mlp.up_proj.weight"
            tensors[name] = tensors[name].flip(0).contiguous()
            save_file(tensors, out / "model.safetensors", {"format": "pt"})
        else:
            told = json.loads((out / "tokenizer.json").read_text())
            told["model"]["merges"] = told["model"]["merges"][:3]
            (out / "tokenizer.json").write_text(json.dumps(told))

    monkeypatch.setattr("luthier.export.from_run.merge_to_folder", badly)
    assert main(["export", str(folder.path)]) == 1
    found = capsys.readouterr()
    assert "is NOT the model that was trained" in found.out and "merged model:" not in found.out
    assert "The first difference" in found.out or what == "weights"
    assert "do not use it" in found.err
    assert not (folder.path / "merged").exists() and (folder.path / "merged.unverified").is_dir()
    assert written(folder, "merged.json")["verdict"] == "different"


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (", eval_rows: 6", "held-out rows"),
        (", eval_fraction: 0.3", "held-out rows"),
        ("", "rows that were trained on"),
    ],
)
def test_prompts_are_the_rows_up_to_their_answer(data: str, source: str, tmp_path: Path) -> None:
    folder = finished(tmp_path, data)
    config = load_config(folder.config)
    loaded = load_for_inference(str(folder.path), device="cpu", dtype="float32")
    found = own_prompts(config, loaded.tokenizer, loaded.template, 4)
    assert found.source == source and len(found.prompts) == 4 and not found.note
    for prompt in found.prompts:
        assert prompt.text.startswith("<|im_start|>user\nQuestion ")
        assert prompt.text.endswith("<|im_start|>assistant\n") and "Because" not in prompt.text
        assert list(prompt.ids) == loaded.template.encoder.encode(prompt.text).ids.tolist()  # type: ignore[union-attr]
        assert prompt.messages is not None
    if "eval_rows" in data:
        from luthier.models.load import load_tokenizer
        from luthier.parallel.cluster import Cluster
        from luthier.training.build import build_data
        from luthier.training.template import build_template

        tokenizer = load_tokenizer(str(tmp_path / "base"))
        built = build_data(
            config,
            tokenizer,
            build_template(config, tokenizer),
            Cluster(),
            lambda line: None,
            tmp_path / "scratch",
        )
        assert isinstance(built.held_out, Sized)
        held = [built.held_out.example(i).segments[0].ids.tolist() for i in range(len(built.held_out))]
        assert all(any(row[: len(one.ids)] == list(one.ids) for row in held) for one in found.prompts)


def test_without_the_rows_texts_of_our_own_are_asked_and_it_is_said(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    loaded = load_for_inference(str(folder.path), device="cpu", dtype="float32")
    found = own_prompts(load_config(folder.config), loaded.tokenizer, loaded.template, 3)
    assert found.source == "texts written for this" and "rows.jsonl" in found.note
    assert [one.text for one in found.prompts] == [
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in OUR_WORDS[:3]
    ]


NONE = Distance(4, 720, 4, 4, 4, 0.0, 0.0, 5.0, 1.0, 700, 700, 0.0, 0.0, 4, 0, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"same_text": 3, "ties": 1}, None),
        ({"same_text": 3}, "1 of 4 greedy answers differ"),
        ({"mean_kl": 2e-3}, "mean KL is 0.002 nats, more than 0.001"),
        ({"mean_kl": float("nan")}, "no numbers"),
        ({"top1": 0.5}, None),
        ({"clear_agreed": 697}, None),
        ({"clear_agreed": 696}, "another at 4 of 700 clear places, 99.43% the same and not 99.9%"),
        ({"clear": 0, "clear_agreed": 0}, None),
        ({"spread": 0.06}, "logits differ by 0.06 of their spread"),
        ({"same_ids": 3}, "1 of 4 prompts become other tokens"),
        ({"same_prompt": 2}, "2 of 4 conversations"),
        ({"same_prompt": None}, None),
    ],
)
def test_each_bound_can_fail(change: dict, message: str | None) -> None:
    told = faults(Distance(**{**vars(NONE), **change}), SIXTEEN)
    assert told == [] if message is None else len(told) == 1 and message in told[0]


def test_bounds_by_form() -> None:
    far = Distance(**{**vars(NONE), "mean_kl": 5e-3})
    assert (
        faults(far, bounds_of("f16")) and not faults(far, bounds_of("q8_0")) and not faults(far, AS_DECODED)
    )
    farther = Distance(**{**vars(NONE), "mean_kl": 2.4, "same_text": 0})
    assert bounds_of("q4_k_m") is FEW and not faults(farther, FEW)
    assert faults(Distance(**{**vars(NONE), "mean_kl": 2.6}), FEW)


class Fixed:
    """An engine whose logits are given."""

    name = caveat = ""

    def __init__(self, logits_TV: torch.Tensor, answer: list[int]):
        self.logits_TV, self.answer = logits_TV, answer

    def ids(self, text: str) -> list[int]:
        return [1, 2]

    def render(self, messages: object, tools: object) -> None:
        return None

    def logits(self, ids: object, last: int) -> torch.Tensor:
        return self.logits_TV

    def greedy(self, ids: object, most: int, ends: object) -> list[int]:
        return self.answer


def test_distances_by_hand() -> None:
    """Two places of three tokens: the first is the same but for a constant, the second another distribution."""
    own = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, -5.0]])
    other = torch.tensor([[10.0, 11.0, 13.0], [2.0, 4.0, -5.0]])
    said = [Said(Prompt("text", (1, 2)), (2,), own)]
    found = distance(said, Fixed(other, [2]), 4, ())  # type: ignore[arg-type]
    p, q = own[1].double().softmax(0), other[1].double().softmax(0)
    assert found.mean_kl == pytest.approx(float((p * (p / q).log()).sum()) / 2)
    assert found.largest_kl == pytest.approx(2 * found.mean_kl)
    assert (found.top1, found.clear_top1, found.largest_difference) == (0.5, 1.0, 10.0)
    entropy = -sum(float((r * r.log()).sum()) for r in own.double().softmax(-1)) / 2
    assert found.knows == pytest.approx(float(torch.tensor(3.0).log()) - entropy, rel=1e-5)
    assert (found.same_ids, found.same_text, found.same_prompt) == (1, 1, None)
    assert float(divergence(own, own).abs().max()) == 0


def test_answers_that_part_at_a_tie_are_no_fault() -> None:
    own = torch.tensor([[5.0, 0.0, 0.0], [5.0, 4.999, 0.0]])  # behind the prompt, and behind its first answer
    said = [Said(Prompt("text", (1, 2)), (0, 0), own)]
    apart = distance(said, Fixed(own, [0, 1]), 4, ())  # type: ignore[arg-type]
    assert (apart.same_text, apart.ties) == (0, 1)
    clearly = distance(said, Fixed(own, [1, 0]), 4, ())  # type: ignore[arg-type]
    assert (clearly.same_text, clearly.ties) == (0, 0)


@pytest.mark.parametrize("data", [", eval_rows: 6", ", eval_fraction: 0.3", ""])
def test_weights_are_measured_on_other_rows_than_the_proof_asks(data: str, tmp_path: Path) -> None:
    folder = finished(tmp_path, data)
    config = load_config(folder.config)
    loaded = load_for_inference(str(folder.path), device="cpu", dtype="float32")
    asked = own_prompts(config, loaded.tokenizer, loaded.template, 6).prompts
    rows = own_rows(config, loaded.tokenizer, loaded.template, 20)
    texts = [loaded.tokenizer.decode(row) for row in rows]
    assert len({*texts}) == len(texts) == 20 and all("Because" in text for text in texts)
    assert not any(text.startswith(prompt.text) for text in texts for prompt in asked)
    most = own_rows(config, loaded.tokenizer, loaded.template, 100)
    assert len(most) == 40 - (6 if "rows" in data else 0) or "fraction" in data
    held_out = [prompt.text for prompt in own_prompts(config, loaded.tokenizer, loaded.template, 100).prompts]
    shared = sum(loaded.tokenizer.decode(row).startswith(text) for row in most for text in held_out)
    assert shared == (0 if data else 40)

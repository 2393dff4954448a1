"""The model card says what the run wrote down and nothing else; the hub gets what was exported."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.config.load import load_config
from luthier.errors import ConfigError, ModelError
from luthier.export.card import model_card
from luthier.export.push import check_push, push
from luthier.runs.folder import RunFolder

CONFIG = "model: {model}\ndata: {data}\nlora: {{rank: 4}}\noptim: {{lr: 0.0003}}\nseed: 11\n"


def a_run(root: Path, model: str = "", data: str = "rows.jsonl") -> tuple[RunFolder, Path]:
    """A run's records, and its base model's folder."""
    base = root / "base-model"
    base.mkdir(parents=True)
    (root / "rows.jsonl").write_text("{}\n")
    text = CONFIG.format(model=model or base, data=data if ":" in data else root / data)
    folder = RunFolder.create(root / "runs", "tickets", config_yaml=text)
    rows = [
        {"kind": "train", "step": 1, "time": 1.0, "loss": 2.0, "num_tokens": 500},
        {"kind": "train", "step": 40, "time": 2.0, "loss": 1.0, "num_tokens": 20000},
        {"kind": "eval", "step": 20, "time": 2.0, "loss": 1.5},
        {"kind": "eval", "step": 40, "time": 3.0, "loss": 0.5, "perplexity": 1.6487},
        {"kind": "evaluation", "step": 40, "time": 3.0, "when": "after", "exact_match": 0.925},
    ]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {"read": 1000, "kept": 998, "truncated": 0, "dropped": 2, "left_out": 0, "reasons": {"long": 2}}
    folder.write_json(folder.ledger, {"train": counts})
    folder.write_json(folder.environment, {"packages": {"luthier": "0.1.0", "torch": "2.13.0"}})
    return folder, base


def card(folder: RunFolder, base: Path) -> str:
    return model_card(folder, load_config(folder.config), base, "    run it")


def test_the_card_has_data_method_metrics_and_licence(tmp_path: Path) -> None:
    folder, base = a_run(tmp_path)
    (base / "README.md").write_text(
        "---\nlanguage: en\nlicense: apache-2.0\n---\n# The base\nlicense: other\n"
    )
    text = card(folder, base)
    for part in (
        "license: \"apache-2.0\"\n",
        "`base-model` with Luthier by the method `sft`: an adapter of rank 4.",
        "## How to run it\n    run it\n",
        "- `rows.jsonl`\n- train rows: read 1,000, kept 998, truncated 0, dropped 2, left out 0\n",
        "- 40 steps, 20,000 tokens\n",
        "learning rate 0.0003",
        "- seed 11\n- luthier 0.1.0, torch 2.13.0\n",
        "- held-out rows, step 40: loss 0.5, perplexity 1.649\n",
        "- answers after, step 40: exact_match 0.925\n",
        "The base model is under `apache-2.0`.",
    ):  # fmt: skip
        assert part in text, part
    assert str(tmp_path) not in text and "base_model:" not in text


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    folder, base = a_run(tmp_path, model="owner/model", data="hf:owner/rows")
    for file in (folder.metrics, folder.ledger, folder.environment):
        file.unlink()
    text = card(folder, base)
    assert 'base_model: "owner/model"\n' in text and "- `hf:owner/rows`" in text
    assert "None were measured." in text and "license:" not in text
    assert "do not name its licence. Look at `owner/model`" in text and "steps" not in text


class Hub:
    """What stands for the hub."""

    def __init__(self, fault: Exception | None = None):
        self.fault, self.seen = fault, []

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        if self.fault:
            raise self.fault
        self.seen.append(("made", name, private, exist_ok))
        return f"https://hub.invalid/{name}"

    def upload_folder(self, **told: Any) -> None:
        self.seen.append(
            ("folder", told["repo_id"], sorted(p.name for p in Path(told["folder_path"]).iterdir()))
        )

    def upload_file(self, **told: Any) -> None:
        self.seen.append(("file", told["path_in_repo"], told["path_or_fileobj"]))


def test_a_folder_or_a_file_with_its_card_goes_to_the_hub(tmp_path: Path) -> None:
    hub = Hub()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "README.md").write_text("card")
    assert push(tmp_path / "merged", "card", "me/it", private=True, api=hub) == "https://hub.invalid/me/it"
    assert hub.seen == [("made", "me/it", True, True), ("folder", "me/it", ["README.md"])]
    (tmp_path / "a.gguf").write_text("weights")
    hub = Hub()
    push(tmp_path / "a.gguf", "card", "me/it", private=False, api=hub)
    assert hub.seen[0] == ("made", "me/it", False, True)
    assert hub.seen[1:] == [("file", "a.gguf", str(tmp_path / "a.gguf")), ("file", "README.md", b"card")]
    with pytest.raises(ModelError, match=r"could not be uploaded to me/it: no route\. It is still there"):
        push(tmp_path / "a.gguf", "card", "me/it", private=True, api=Hub(OSError("no route")))


def test_what_cannot_be_pushed_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = a_run(tmp_path)
    config = load_config(folder.config)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="owner/name"):
        check_push("it", config)
    offline = config.model_copy(update={"offline": True})
    with pytest.raises(ConfigError, match="offline is set in the run's config"):
        check_push("me/it", offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder.adapter.mkdir()
    assert main(["export", str(folder.path), "--push", "me/it"]) == 2
    assert "--push needs the network, and HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert not (folder.path / "merged").exists()

"""The table of ways to round is filled form by form."""

import json
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from bench import few_bits
from export_runs import finished_run


def test_every_way_is_written_and_compared(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    turns = [
        [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": f"A{n}"}] for n in range(20)
    ]
    rows.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    folder, _ = finished_run(tmp_path, **sizes)
    data = f"data: {{path: {rows}, eval_rows: 4}}"
    folder.config.write_text(folder.config.read_text().replace("data: rows.jsonl", data))
    out = tmp_path / "found.json"
    arguments = [str(folder.path), "--prompts", "3", "--rows", "8", "--scratch", str(tmp_path / "x")]
    assert few_bits.main([*arguments, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["asked"]["prompts"] == 3 and found["rounded_with"]["rows"] == 8
    assert list(found["forms"]) == ["compressed", "gptq", "awq"]
    assert len({one["mean_kl"] for one in found["forms"].values()}) == 3
    assert len({one["bytes"] for one in found["forms"].values()}) == 1  # the same format

"""`--to onnx`: the graph is the model for any number of rows, tokens and earlier tokens, and ONNX Runtime proves it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export_runs import finished_run
from gguf_models import saved
from luthier.cli.main import main
from luthier.errors import ModelError
from luthier.export.onnx import write as onnx
from luthier.export.onnx.write import GRAPH, WEIGHTS, write_onnx
from luthier.export.verify.bounds import SIXTEEN, bounds_of

needs_onnx = pytest.mark.skipif(
    not onnx.installed("onnx", "onnxscript", "onnxruntime"),
    reason="onnx, onnxscript or onnxruntime is not installed: luthier[onnx]",
)
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"sliding_window": 40},  # shorter than the rows, longer than what the graph is traced with
}


def asked(ids: torch.Tensor, mask: torch.Tensor, past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As programs for such graphs ask them: positions count the tokens that are no padding."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return {
        "input_ids": ids.numpy(),
        "attention_mask": mask.numpy(),
        "position_ids": positions.numpy(),
        **past,
    }


@needs_onnx
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_graph_is_the_model(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    model = saved(kind, tmp_path / "model", **KINDS[kind])
    (tmp_path / "out").mkdir()
    write_onnx(tmp_path / "model", tmp_path / "out")
    assert capsys.readouterr().out == ""
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {GRAPH, WEIGHTS, "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not any(name.endswith(".safetensors") for name in names)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / GRAPH))
    layers = range(model.config.num_hidden_layers)
    pairs = [f"{number}.{what}" for number in layers for what in ("key", "value")]
    assert [one.name for one in session.get_inputs()] == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{one}" for one in pairs),
    ]
    outputs = [one.name for one in session.get_outputs()]
    assert outputs == ["logits", *(f"present.{one}" for one in pairs)]
    torch.manual_seed(0)
    heads, size = model.config.num_key_value_heads, model.config.head_dim
    for rows, parts in ((1, (60,)), (3, (30, 1, 1, 30)), (2, (1, 7))):
        ids = torch.randint(3, 90, (rows, sum(parts)))
        padding = torch.arange(rows) % 2 * 3 if parts[0] > 1 else torch.zeros(rows, dtype=torch.long)
        mask = (torch.arange(ids.shape[1]) >= padding[:, None]).long()
        past = {f"past_key_values.{one}": np.zeros((rows, heads, 0, size), np.float32) for one in pairs}
        found, seen = [], 0
        for part in parts:
            given = asked(ids[:, seen : seen + part], mask[:, : seen + part], past)
            made = dict(zip(outputs, session.run(None, given), strict=True))
            found.append(torch.from_numpy(made.pop("logits")))
            past = {name.replace("present", "past_key_values"): one for name, one in made.items()}
            seen += part
        logits = torch.cat(found, 1)
        for row, left in enumerate(padding.tolist()):
            with torch.no_grad():
                right = model.float()(input_ids=ids[row : row + 1, left:]).logits[0]
            torch.testing.assert_close(logits[row, left:], right, rtol=1e-4, atol=1e-5)


@needs_onnx
def test_the_command_proves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished_run(tmp_path, "llama")
    assert main(["export", str(folder.path), "--to", "onnx"]) == 0
    out = capsys.readouterr().out
    assert f"ONNX graph: {folder.path / 'onnx'}\n" in out and "ONNX Runtime" in out.split("asked")[0]
    told = json.loads((folder.path / "verification" / "onnx.json").read_text())
    assert told["verdict"] == "same" and told["found"]["mean_kl"] < 1e-6
    assert told["found"]["same_text"] + told["found"]["ties"] == told["found"]["prompts"]
    assert bounds_of("onnx") == SIXTEEN
    import onnxruntime  # pyright: ignore[reportMissingImports]

    (folder.path / "onnx" / GRAPH).write_bytes(b"no graph")
    from luthier.export.verify.engines.onnx import InOnnxRuntime

    assert onnxruntime.__version__
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        InOnnxRuntime(folder.path / "onnx")


@needs_onnx
def test_rotary_embeddings_that_change_with_the_length_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    saved("llama", tmp_path / "model", rope_parameters=rope)
    with pytest.raises(ModelError, match=r"rotary embeddings \(dynamic\) are others for longer texts"):
        write_onnx(tmp_path / "model", tmp_path)


def test_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"writing ONNX needs the packages onnx.*luthier\[onnx\]"):
        write_onnx(tmp_path, tmp_path)
    from luthier.export.verify.engines.onnx import InOnnxRuntime

    with pytest.raises(ModelError, match="can be run with the packages onnx"):
        InOnnxRuntime(tmp_path)

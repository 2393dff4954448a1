"""`luthier export RUN --to pi`: the prediction's arithmetic, and a self-test that runs with Python alone."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from luthier.cli.main import main
from luthier.errors import ConfigError
from luthier.export.pi import self_test
from luthier.export.pi.predict import BANDWIDTH, BATCH, Decoder, predict, read_per_token

pytest.importorskip("gguf")

from export_runs import finished_run
from gguf_models import saved
from luthier.export.gguf.write import planned_sizes, write_gguf

SMALL = Decoder(context=4096, windows=(None, 100), values=256, vocabulary=1000, width=64)


def test_the_cache_grows_with_the_context_and_windows_bound_it() -> None:
    assert SMALL.cache(100) == 2 * 256 * (100 + 100)
    assert SMALL.cache(4000) == 2 * 256 * (4000 + 100 + BATCH)


def test_a_token_reads_matrices_once_and_one_row_of_the_embeddings() -> None:
    tied = [("token_embd.weight", 100), ("blk.0.ffn_up.weight", 50)]
    assert read_per_token(tied) == 150
    assert read_per_token([*tied, ("output.weight", 100)]) == 150
    assert read_per_token([("token_embd.weight", 8), ("blk.0.ffn_up_exps.weight", 80)], (2, 8)) == 28


def test_the_longest_context_that_fits_is_taken_and_none_is_refused() -> None:
    wide = Decoder(context=131072, windows=(None,) * 32, values=2048, vocabulary=128256, width=4096)
    found = predict(wide, 4_900_000_000, 4_600_000_000)
    assert 2048 < found.context < 131072 and found.context % 256 == 0
    assert found.memory + 1.2e9 <= 8e9 < found.memory + 1.2e9 + wide.cache(256) * 1.01
    assert found.speed == BANDWIDTH / 4.6e9 and found.speed_when_full < found.speed
    assert predict(SMALL, 10_000_000, 9_000_000).context == 4096
    with pytest.raises(ConfigError, match=r"the file takes 7\.5 GB and runs in .*Give a smaller --type"):
        predict(wide, 7_500_000_000, 7_000_000_000)


def test_what_is_measured_elsewhere_is_predicted_within_a_tenth() -> None:
    """Llama 3.1 8B and Llama 3.2 3B in 4 bits wrote 2.17 and 4.88 tokens a second on one (sbc-reviews, issue 21)."""
    for size, measured in ((4.9e9, 2.17), (2.0e9, 4.88)):
        assert predict(SMALL, round(size), round(size)).speed == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "phi3", "qwen3_moe", "gemma3_text"])
def test_planned_sizes_are_those_of_the_file(kind: str, tmp_path: Path) -> None:
    import gguf

    saved(kind, tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "q8_0")
    found = {one.name: int(one.n_bytes) for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert dict(planned_sizes(tmp_path / "model", "q8_0")) == found


SERVER = '''
import http.server, json, sys
test = json.load(open(sys.argv[1])); wrong = sys.argv[2]
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, body):
        text = json.dumps(body).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(text)
    def do_GET(self): self.reply({"status": "ok"})
    def log_message(self, *a): pass
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = "messages" in body
        key = "messages" if chat else "prompt"
        case = next(c for c in test["cases"] if c[key] == body[key])
        said = "#" if wrong == ("chat" if chat else "text") else case["answer"]
        if chat: self.reply({"choices": [{"message": {"content": said}}]})
        else: self.reply({"content": said, "timings": {"predicted_per_second": 12.5}})
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
'''  # fmt: skip


def run_test(folder: Path, wrong: str, port: int) -> tuple[int, str]:
    fake = folder / "fake-server"
    (folder / "fake.py").write_text(SERVER)
    words = f'exec {sys.executable} "{folder / "fake.py"}" "{folder / "self_test.json"}" "{wrong}" "$@"'
    fake.write_text(f"#!/bin/sh\n{words}\n")
    fake.chmod(0o755)
    command = [sys.executable, "-I", str(folder / "self_test.py"), "--server", str(fake), "--port", str(port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return ended.returncode, ended.stdout


def test_the_folder_and_its_self_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished_run(tmp_path)
    assert main(["export", str(folder.path), "--to", "pi", "--no-verify"]) == 0
    target = folder.path / "pi"
    assert "Predicted for a Raspberry Pi 5:" in capsys.readouterr().out
    assert {path.name for path in target.iterdir()} == {
        *("tiny-q8_0.gguf", "Modelfile", "run-llama.cpp.sh", "run-ollama.sh", "README.md"),
        *("prediction.json", "self_test.py", "self_test.json"),
    }
    predicted = json.loads((target / "prediction.json").read_text())
    size = (target / "tiny-q8_0.gguf").stat().st_size
    assert predicted["file"] == size and predicted["memory"] > predicted["file"]
    test: dict[str, Any] = json.loads((target / "self_test.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder.adapter)
    for case in test["cases"]:
        assert case["prompt"] == tokenizer.apply_chat_template(
            case["messages"], tokenize=False, add_generation_prompt=True
        )
    status, told = run_test(target, "nothing", 18741)
    assert status == 0 and "PASSED" in told and "12.5 tokens a second" in told
    status, told = run_test(target, "text", 18742)
    assert status == 1 and "FAILED" in told and "The weights or the tokenizer" in told
    status, told = run_test(target, "chat", 18743)
    assert status == 1 and "is the chat template another?" in told


def test_the_self_test_needs_python_alone() -> None:
    tree = ast.parse(Path(self_test.__file__).read_text())
    names = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names <= set(sys.stdlib_module_names)
    assert self_test.same_start("abcd", "abxy") == 0.5 and self_test.same_start("", "") == 0

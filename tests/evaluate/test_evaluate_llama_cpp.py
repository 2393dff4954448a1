"""A GGUF file measured in the program that runs it: the same numbers as by any other engine that computes the model."""

from pathlib import Path
from typing import Any

import pytest

from gguf_models import saved
from luthier.data.chat import ChatTemplate
from luthier.data.prepare import prepare
from luthier.errors import DataError
from luthier.evaluate.answers import question_of
from luthier.evaluate.compare import Measured, engine_notes
from luthier.evaluate.journal import Answered
from luthier.evaluate.llama_file import LlamaFile, answer_in, predicted_by
from luthier.evaluate.measure import measure
from luthier.evaluate.task import Evaluation, evaluate
from luthier.evaluate.variants import DECODED, LLAMA_CPP, Variant, variants_of
from luthier.export.gguf.llama import installed
from luthier.export.verify.engines._torch import TorchModel
from luthier.models.inference import load_for_inference
from tiny_runs import write_chats

gguf = pytest.importorskip("gguf")
LLAMA = pytest.mark.skipif(not installed(), reason="llama-cpp-python is not installed")


def parts(folder: Path) -> tuple[Any, LlamaFile, Path]:
    """A model with its file, and rows."""
    from luthier.export.gguf.write import write_gguf

    model = saved("llama", folder / "model")
    write_gguf(folder / "model", folder / "model.gguf", "f32")
    return model, LlamaFile.load(folder / "model.gguf"), write_chats(folder / "test.jsonl", 8)


def test_rows_are_as_likely_and_answered_as_when_many_are_computed_at_once(tmp_path: Path) -> None:
    """With the model itself in llama.cpp's place: all that is ours is the same."""
    model, file, data = parts(tmp_path)
    loaded = load_for_inference(str(tmp_path / "model"), dtype="float32")
    expected = evaluate(loaded, [data], answer_tokens=5)
    assert file.template is not None and file.eos_token_ids == loaded.eos_token_ids
    rows = prepare([data], ChatTemplate(file.tokenizer), max_length=512)
    told: dict[int, Answered] = {}
    with TorchModel(model.float(), file.tokenizer) as engine:
        predicted = [predicted_by(engine, rows.example(place), place) for place in range(len(rows))]
        questions = [question_of(rows.example(place), file.tokenizer) for place in range(len(rows))]
        answer_in(engine, file, questions, range(len(rows)), told.__setitem__, most=5, context=512)
        with pytest.raises(DataError, match="no room for an answer"):
            answer_in(engine, file, questions, range(len(rows)), told.__setitem__, most=5, context=10)
    sums = expected.sums["loss"].parts_RK
    for one, (loss, weight) in zip(predicted, sums, strict=True):
        assert one.loss == pytest.approx(loss, rel=1e-4) and one.weight == weight == one.tokens
        assert one.nll == pytest.approx(one.loss) and one.bytes is None
    for place, theirs in enumerate(expected.answers.values()):
        mine = told[place]
        assert (mine.answer, mine.tokens, mine.finish) == (theirs.answer, theirs.tokens, theirs.finish)
        assert mine.question == theirs.question and mine.reference == theirs.reference


def test_the_file_is_measured_by_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    ((found),) = variants_of(str(tmp_path / "model.gguf"), ())
    assert found.engine == (LLAMA_CPP if installed() else DECODED)
    told = engine_notes([Measured(found.label, found.engine, 4, Evaluation(0, 0.0, {}))])
    assert len(told) == 1 and ("llama.cpp itself" in told[0]) == installed()
    other = Variant(found.label, found.name, engine=DECODED if installed() else LLAMA_CPP)
    assert found.key() != other.key()  # results of one are not gone on with in the other


@LLAMA
def test_llama_cpp_finds_what_transformers_finds_in_the_same_file(tmp_path: Path) -> None:
    _, file, data = parts(tmp_path)
    variant = Variant("model", str(file.file), engine=LLAMA_CPP)
    mine = measure(variant, [data], answer_tokens=5, folder=tmp_path / "kept")
    theirs = measure(
        Variant("model", str(file.file), engine=DECODED), [data], answer_tokens=5, folder=tmp_path / "kept"
    )
    assert mine.engine == LLAMA_CPP and mine.size == theirs.size
    assert mine.found.loss == pytest.approx(theirs.found.loss, rel=1e-3)
    assert mine.found.keys == theirs.found.keys and mine.found.tokens_per_second
    assert len(list((tmp_path / "kept").glob("*.jsonl"))) == 2
    again = measure(variant, [data], answer_tokens=5, folder=tmp_path / "kept")
    assert again.found.loss == mine.found.loss

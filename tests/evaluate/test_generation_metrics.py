"""Metrics of generated text against the libraries they are known from, and against examples counted by hand."""

import json
import random
from pathlib import Path

import pytest

from luthier.errors import ConfigError
from luthier.evaluate.metrics import find
from luthier.evaluate.metrics.code import code_of

WORDS = "the a cat dog runs house, green! (river) it's 12 über naïve stone".split()  # noqa: SIM905


def texts(seed: int, count: int = 40) -> tuple[list[str], list[str]]:
    """Predictions and references that agree in part."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(count)]
    predictions = []
    for reference in references:
        words = reference.split()
        draw.shuffle(words)
        predictions.append(
            " ".join([*words[: draw.randint(0, 6)], *draw.choices(WORDS, k=draw.randint(0, 3))])
        )
    return predictions, references


@pytest.mark.parametrize("stem", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"), [("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")]
)
def test_rouge_is_the_library_s(name: str, kind: str, stem: bool) -> None:
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    predictions, references = texts(1)
    scorer = rouge.RougeScorer([kind], use_stemmer=stem)
    each = [scorer.score(r, p)[kind].fmeasure for p, r in zip(predictions, references, strict=True)]
    asked = f"{name}:stem" if stem else name
    assert find(asked)(predictions, references) == {asked: pytest.approx(sum(each) / len(each))}


@pytest.mark.parametrize("cut", ["13a", "char", "intl"])
def test_bleu_is_that_of_the_corpus_and_no_mean_of_rows(cut: str) -> None:
    library = pytest.importorskip("sacrebleu")
    predictions, references = texts(2)
    wanted = library.corpus_bleu(predictions, [references], tokenize=cut, force=True).score / 100
    assert find(f"bleu:{cut}")(predictions, references)[f"bleu:{cut}"] == pytest.approx(wanted)
    assert find("bleu")(references, references) == {"bleu": pytest.approx(1.0)} or cut != "13a"


@pytest.mark.parametrize("words", [0, 1, 2])
def test_chrf_is_sacrebleu_s(words: int) -> None:
    library = pytest.importorskip("sacrebleu")
    for seed in range(3):
        predictions, references = texts(seed)
        wanted = library.corpus_chrf(predictions, [references], word_order=words).score / 100
        assert find(f"chrf:{words}")(predictions, references)[f"chrf:{words}"] == pytest.approx(wanted)


def test_chrf_by_hand() -> None:
    """`ab` against `abc`: of runs of one letter 2 of 2 and 2 of 3 are right, of two 1 of 1 and 1 of 2."""
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    wanted = 5 * precision * recall / (4 * precision + recall)
    assert find("chrf")(["ab"], ["abc"])["chrf"] == pytest.approx(wanted)
    assert find("chrf")([""], [""])["chrf"] == 0 and find("chrf")(["a b"], ["ab"])["chrf"] == 1


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("The cat sat.", "a cat, sat", 1.0),
        ("cat cat dog", "cat dog dog", 2 * 2 / 6),
        ("cat", "dog", 0.0),
        ("", "", 1.0),
        ("the", "a", 1.0),
        ("", "dog", 0.0),
        ("it is in Paris", "Paris", 2 * 1 / 5),
    ],
)
def test_token_f1_by_hand(prediction: str, reference: str, value: float) -> None:
    assert find("token_f1")([prediction], [reference]) == {"token_f1": pytest.approx(value)}


def test_regex_looks_at_the_prediction_alone() -> None:
    found = find("regex:^(yes|no)$")([" yes\n", "yes!", "no", "maybe"], ["no"] * 4)
    assert found == {"regex:^(yes|no)$": 0.5}


def test_extract_match_compares_what_the_expression_finds() -> None:
    asked = "extract_match:#### (.+)"
    predictions = ["so #### 12", "1 + 1\n#### 1,200", "#### 3\n#### 4", "5", "#### 7"]
    references = ["#### 12", "#### 1200.0", "#### 4", "#### 5", "7"]
    assert find(asked)(predictions, references) == {asked: pytest.approx(4 / 5)}


def test_json_schema(tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    file = tmp_path / "ticket.json"
    file.write_text(
        json.dumps({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
    )
    predictions = ['{"a": 1}', '{"a": "1"}', "{}", "no JSON", '```json\n{"a": 1}\n```', ' {"a": 2, "b": 3} ']
    assert find(f"json_schema:{file}")(predictions, [""] * 6) == {f"json_schema:{file}": pytest.approx(2 / 6)}
    file.write_text('{"type": "objekt"}')
    with pytest.raises(ConfigError, match="is no JSON Schema"):
        find(f"json_schema:{file}")
    with pytest.raises(ConfigError, match="needs the file"):
        find("json_schema")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        find(f"json_schema:{tmp_path / 'nothing.json'}")
    file.write_text('{"$ref": "https://example.org/other.json"}')
    with pytest.raises(ConfigError, match=r"refers to https://example\.org/other\.json"):
        find(f"json_schema:{file}")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("exact_match:x", "takes nothing behind a colon"),
        ("regex", "regex needs an expression"),
        ("regex:(", "is no regular expression"),
        ("chrf:3", "it takes 0, 1 or 2"),
        ("code:tests", "reads a column of the rows"),
    ],
)
def test_wrong_arguments_are_told_at_once(asked: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        find(asked)


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.evaluate.metrics.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'bleu' needs sacrebleu.*pip install 'luthier\[evaluate\]'"):
        find("bleu")


@pytest.mark.parametrize("asked", ["token_f1", "chrf", "chrf:2", "regex:dog", "extract_match:(cat|dog)"])
def test_every_row_adds_its_part(asked: str) -> None:
    """The same rows twice give the same number: it is a function of sums, and the order does not matter."""
    predictions, references = texts(5)
    metric = find(asked)
    once, sums = metric.both(predictions, references)
    assert sums is not None and sums.estimate == pytest.approx(once[asked]) and len(sums) == len(references)
    assert metric(predictions[::-1] * 2, references[::-1] * 2) == {asked: pytest.approx(once[asked])}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("def f(): pass", "def f(): pass"),
        ("Here:\n```python\nx = 1\n```\nDone. ```y```", "x = 1\n"),
        ("```\nx = 2\n```", "x = 2\n"),
        ("```bash\nls\n```\n```py\nx = 3\n```", "x = 3\n"),
        ("```python\nx = 4", "x = 4"),
    ],
)
def test_the_code_of_an_answer(answer: str, code: str) -> None:
    assert code_of(answer) == code

"""Rows of llama.cpp's store: each is read as if it were alone, and what they take is counted to the token."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")

from gguf_models import saved
from luthier.errors import ModelError, RunError
from luthier.export.gguf.llama import installed, library
from luthier.export.gguf.write import write_gguf
from luthier.rollout.llama_model import LlamaContext, LlamaModel, Read
from luthier.rollout.llama_places import LlamaPlaces
from luthier.rollout.places import Begin

pytestmark = pytest.mark.skipif(not installed(), reason="llama-cpp-python is not installed")
ROWS, TOKENS = 6, 512


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, LlamaModel, Path]]:
    """A model of transformers, llama.cpp's of its file, and the file."""
    folder = tmp_path_factory.mktemp("places")
    model = saved("llama", folder / "model", max_position_embeddings=4096)
    write_gguf(folder / "model", folder / "model.gguf", "f32")
    found = LlamaModel(folder / "model.gguf")
    yield model, found, folder / "model.gguf"
    found.close()


@pytest.fixture
def context(written: tuple[Any, LlamaModel, Path]) -> Iterator[LlamaContext]:
    found = LlamaContext(written[1], num_rows=ROWS, num_tokens=TOKENS)
    yield found
    found.close()


def ids(number: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 400), k=number)


class Kept:
    """What llama.cpp found behind texts, to be compared with what transformers finds."""

    def __init__(self, model: Any):
        self._model = model
        self._found: list[tuple[list[int], int, torch.Tensor]] = []

    def add(self, tokens: Sequence[int], prompt: int, logits_V: torch.Tensor) -> None:
        """Of the tokens, the first `prompt` were read at once and the others one by one."""
        self._found.append((list(tokens), prompt, logits_V.clone()))

    def check(self, file: Path) -> None:
        """The error is at most twice that of llama-cpp-python's own class, which reads each text alone.

        With the attention that llama.cpp takes by itself, which adds values up in 16 bit; that class has another.
        """
        mine, alone = 0.0, 0.0
        engine = library().Llama(str(file), n_ctx=4096, flash_attn=True, logits_all=True, verbose=False)
        for tokens, prompt, logits_V in self._found:
            with torch.no_grad():
                right_V = self._model(input_ids=torch.tensor([tokens])).logits[0, -1]
            engine.reset()
            for portion in (tokens[:prompt], *([token] for token in tokens[prompt:])):
                engine.eval(portion)
            mine += float((logits_V - right_V).norm())
            alone += float((torch.tensor(engine.scores[len(tokens) - 1]) - right_V).norm())
        engine.close()
        assert 0 < mine <= 2 * alone, (mine, alone)


def test_rows_of_several_prompts_are_the_models(written, context: LlamaContext) -> None:
    kept, places = Kept(written[0]), LlamaPlaces(context, ROWS)
    prompts = [ids(30, 1), ids(3, 2), ids(90, 3)]
    begun = places.begin(
        [Begin(prompt, number, 20) for prompt, number in zip(prompts, (1, 2, 3), strict=True)]
    )
    taken = begun.places
    assert [len(own) for own in taken] == [1, 2, 3] and len(
        {place.row for own in taken for place in own}
    ) == ROWS
    for prompt, logits_V in zip(prompts, begun.logits_PV, strict=True):
        kept.add(prompt, len(prompt), logits_V)
    rows = [
        (list(prompt), len(prompt), place)
        for prompt, own in zip(prompts, taken, strict=True)
        for place in own
    ]
    for step in range(12):
        for number, (tokens, *_) in enumerate(rows):
            tokens.append(ids(1, 100 * step + number)[0])
        logits_BV = places.step([tokens[-1] for tokens, *_ in rows], [place for *_, place in rows])
        for (tokens, prompt, _), logits_V in zip(rows, logits_BV, strict=True):
            kept.add(tokens, prompt, logits_V)
        if step == 5:  # one of each prompt's answers goes, and its row is another's
            gone = [rows.pop(number) for number in (5, 1)]
            for *_, place in gone:
                places.release(place, [])
            begun = places.begin([Begin(ids(40, 9), 1, 20)])
            ((place,),) = begun.places
            kept.add(ids(40, 9), 40, begun.logits_PV[0])
            assert place.row in {one.row for *_, one in gone}
            rows.append((ids(40, 9), 40, place))
    kept.check(written[2])


def test_a_prompt_that_is_longer_than_what_is_read_at_a_time(written) -> None:
    model, found, file = written
    kept = Kept(model)
    context = LlamaContext(found, num_rows=2, num_tokens=3072)
    prompts = [ids(2500, 4), ids(7, 5)]
    for prompt, logits_V in zip(
        prompts, context.read([Read(0, 0, prompts[0]), Read(1, 0, prompts[1])]), strict=True
    ):
        kept.add(prompt, len(prompt), logits_V)
    context.close()
    kept.check(file)


def test_what_fits_can_be_read_to_its_end_and_what_leaves_gives_all_back(context: LlamaContext) -> None:
    """Answers come and go in any order, always as many as are said to fit: llama.cpp never runs out of room."""
    draw, places = random.Random(0), LlamaPlaces(context, ROWS)
    going: list[list[Any]] = []  # a place, and what it may still read
    refused = 0
    for step in range(300):
        begin = Begin(ids(draw.randrange(1, 120), step), draw.randrange(1, 4), draw.randrange(1, 80))
        assert places.ever_fits(begin)
        if places.fits(begin):
            (own,) = places.begin([begin]).places
            going += [[place, begin.limit] for place in own]
        else:
            refused += 1
        places.step(ids(len(going), step), [place for place, _ in going])
        for one in going:
            one[1] -= 1
        for one in [one for one in going if one[1] <= 0 or draw.random() < 0.02]:
            places.release(one[0], [])
            going.remove(one)
    assert 50 < refused < 290
    for place, _ in going:
        places.release(place, [])
    whole = Begin(ids(context.num_tokens - 6, 0), 1, 6)
    assert places.fits(whole) and not places.fits(whole, [Begin([3], 1, 1)])
    places.begin([whole])
    assert not places.fits(Begin([3], 1, 1))


def test_what_never_fits(context: LlamaContext) -> None:
    places = LlamaPlaces(context, ROWS)
    assert context.num_tokens == TOKENS
    assert places.ever_fits(Begin(ids(TOKENS - 60, 0), ROWS, 10))
    assert not places.ever_fits(Begin(ids(TOKENS - 60, 0), ROWS, 11))
    assert not places.ever_fits(Begin([3], ROWS + 1, 1))
    assert not places.fits(Begin([3], 2, 1), [Begin([3], ROWS - 1, 1)])


def test_more_than_there_is_room_for_is_an_error(context: LlamaContext) -> None:
    with pytest.raises(RunError, match=r"llama.cpp could not read \d+ tokens \(it says 1\)"):
        context.read([Read(0, 0, ids(TOKENS + 1, 0))])


def test_a_file_that_is_none_is_told_with_its_reason(tmp_path: Path, capfd) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(ModelError, match=r"llama.cpp cannot load .*model.gguf: .*failed to read header"):
        LlamaModel(tmp_path / "model.gguf")


def test_what_is_read_from_the_file(written) -> None:
    model, found, _ = written
    config = model.config
    assert found.num_tokens == config.vocab_size and found.context == config.max_position_embeddings
    assert config.eos_token_id in found.ends
    heads, size = config.num_key_value_heads, config.head_dim
    assert found.bytes_of_token == 2 * 2 * config.num_hidden_layers * heads * size
    assert found.name.startswith("llama.cpp (llama-cpp-python ")

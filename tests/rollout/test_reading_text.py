"""Text out of tokens: what is streamed is the text, in whole characters, up to the first stop string."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.rollout.text import REPLACEMENT, TextReader, decode

PIECES = [bytes([b]) for b in range(256)] + [
    b"\xe2\x82",
    b"ab",
    b" a",
    "é".encode(),
    "🎻".encode()[:3],
    b"b\xf0",
]


class Bytes:
    """A tokenizer whose tokens are byte strings, characters cut anywhere."""

    def decode(self, token_ids: list[int], **options: bool) -> str:
        return b"".join(PIECES[t] for t in token_ids).decode(errors="replace")


class DropsLeadingSpace(Bytes):
    """A tokenizer that takes the space off the start of a text, as SentencePiece models do."""

    def decode(self, token_ids: list[int], **options: bool) -> str:
        text = super().decode(token_ids)
        return text.removeprefix(" ")


TOKENIZERS = st.sampled_from([Bytes(), DropsLeadingSpace()])


@st.composite
def token_texts(draw: st.DrawFn, text: st.SearchStrategy[str]) -> tuple[str, list[int]]:
    """A text and a random way to cut its bytes into tokens."""
    whole = draw(text)
    data, tokens = whole.encode(), []
    while data:
        fitting = [t for t, piece in enumerate(PIECES) if data.startswith(piece)]
        tokens.append(draw(st.sampled_from(fitting)))
        data = data[len(PIECES[tokens[-1]]) :]
    return whole, tokens


def read(reader: TextReader, tokens: list[int]) -> list[str]:
    return [*(reader.push(token) for token in tokens), reader.close()]


@settings(deadline=None, max_examples=200)
@given(TOKENIZERS, token_texts(st.text(st.sampled_from("ab é€🎻\n"), max_size=60)))
def test_streamed_pieces_are_the_text_in_whole_characters(tokenizer, cut) -> None:
    whole, tokens = cut
    pieces = read(reader := TextReader(tokenizer), tokens)
    assert "".join(pieces) == reader.text == decode(tokenizer, tokens)
    assert reader.text == (whole.removeprefix(" ") if isinstance(tokenizer, DropsLeadingSpace) else whole)
    assert not any(REPLACEMENT in piece for piece in pieces)


@settings(deadline=None, max_examples=200)
@given(TOKENIZERS, st.lists(st.integers(0, len(PIECES) - 1), max_size=60))
def test_any_bytes_at_all_stream_to_the_text_of_the_whole(tokenizer, tokens) -> None:
    reader = TextReader(tokenizer)
    assert "".join(read(reader, tokens)) == reader.text == decode(tokenizer, tokens)


@settings(deadline=None, max_examples=300)
@given(
    token_texts(st.text(st.sampled_from("abé"), max_size=40)),
    st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=5), max_size=3),
)
def test_text_ends_before_the_first_stop_string(cut, stops) -> None:
    whole, tokens = cut
    places = [whole.find(stop) for stop in stops if stop in whole]
    reader = TextReader(Bytes(), stops)
    pieces = read(reader, tokens)
    assert reader.stopped == bool(places)
    assert "".join(pieces) == reader.text
    # The stop string that is complete first ends the text, so a later, longer one cannot cut more.
    ends = {stop: whole.find(stop) + len(stop) for stop in stops if stop in whole}
    if not places:
        assert reader.text == whole
    else:
        assert reader.text in {whole[: end - len(stop)] for stop, end in ends.items()}
        assert whole.startswith(reader.text) and not any(stop in reader.text for stop in stops)


@settings(deadline=None, max_examples=200)
@given(
    token_texts(st.text(st.sampled_from("abé"), max_size=40)),
    st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_nothing_streamed_is_ever_taken_back(cut, stops) -> None:
    """At each moment the text so far begins the text that comes out whatever follows."""
    _, tokens = cut
    for ending in itertools.chain([b"a"], (stop.encode() for stop in stops)):
        long, short = TextReader(Bytes(), stops), TextReader(Bytes(), stops)
        for token in tokens:
            short.push(token)
        final = "".join(read(long, [*tokens, *ending]))
        assert final.startswith(short.text)


def test_a_stop_string_over_three_tokens_is_found_as_soon_as_it_is_there() -> None:
    reader = TextReader(Bytes(), ["END."])
    pieces = [reader.push(token) for token in b"to the EN"]
    assert "".join(pieces) == "to the "
    assert reader.push(ord("D")) == "" and not reader.stopped
    assert reader.push(ord(".")) == "" and reader.stopped
    assert reader.push(ord("x")) == "" and reader.close() == "" and reader.text == "to the "


def test_the_beginning_of_a_stop_string_is_text_when_nothing_follows() -> None:
    reader = TextReader(Bytes(), ["END"])
    assert "".join(read(reader, list(b"THE EN"))) == "THE EN"


def test_a_character_cut_off_at_the_end_is_left_out() -> None:
    tokens = list("5 €".encode())[:-1]
    reader = TextReader(Bytes())
    assert "".join(read(reader, tokens)) == "5 " == decode(Bytes(), tokens)


def test_a_stop_string_is_found_though_a_cut_character_follows_in_the_same_token() -> None:
    reader = TextReader(Bytes(), ["b"])
    assert reader.push(ord("a")) == "a"
    assert reader.push(PIECES.index(b"b\xf0")) == "" and reader.stopped


def test_the_work_a_token_costs_does_not_grow_with_the_text() -> None:
    longest = 0

    class Counting(Bytes):
        def decode(self, token_ids: list[int], **options: bool) -> str:
            nonlocal longest
            longest = max(longest, len(token_ids))
            return super().decode(token_ids)

    read(TextReader(Counting()), list(b"all work and no play " * 50))
    assert longest <= 40

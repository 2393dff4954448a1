"""Contents to encode, and what became of them, for tests."""

from typing import Any

from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from chat_samples import CHATML, byte_level
from luthier.data.chat import ChatTemplate
from luthier.data.content import Content
from luthier.data.conversation import Conversation, conversation_from
from luthier.data.encode import EncodedRow, EncodeOptions, RowEncoder
from luthier.errors import RowRefused

WORDS = st.lists(
    st.sampled_from(["word", "quick", "fox", "日本", "é", "{}", "lazy", "😀", "the"]), min_size=1, max_size=6
)
TEXTS = st.builds(" ".join, WORDS)


def speaker(source: str = CHATML) -> PreTrainedTokenizerFast:
    tokenizer = byte_level()
    tokenizer.chat_template = source
    return tokenizer


def encoder(max_length: int = 10_000, source: str = CHATML, **options: Any) -> RowEncoder:
    tokenizer = speaker(source)
    return RowEncoder(tokenizer, ChatTemplate(tokenizer), EncodeOptions(max_length, **options))


def one(encoder: RowEncoder, content: Content) -> EncodedRow:
    (row,) = encoder.encode([content])
    assert isinstance(row, EncodedRow), row
    return row


def refused(encoder: RowEncoder, content: Content) -> str:
    (row,) = encoder.encode([content])
    assert isinstance(row, RowRefused), row
    return str(row)


def learned(encoder: RowEncoder, content: Content) -> list[str]:
    (pieces,) = encoder.pieces(one(encoder, content))
    return [text for text, is_learned in pieces if is_learned]


def chat(*texts: str, system: str | None = None, **last: Any) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    messages: list[dict[str, Any]] = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    messages[-1].update(last)
    return conversation_from([{"role": "system", "content": system}, *messages] if system else messages)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXTS)})
    for _ in range(draw(st.integers(1, 4))):
        messages += [{"role": "user", "content": draw(TEXTS)} for _ in range(draw(st.integers(1, 2)))]
        messages += [{"role": "assistant", "content": draw(TEXTS)} for _ in range(draw(st.integers(1, 2)))]
    return conversation_from(messages)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}

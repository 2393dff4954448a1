"""Which characters of a rendered conversation the model is to write itself.

The region of an assistant's message (template.py) holds header, answer and end of turn:

    <|im_start|>assistant\\n  <think>\\n\\n</think>\\n\\n  The answer  <|im_end|>  \\n
    ---------------- prompt ------------------------  ------- target -------

The header ends where the generation prompt ends, or where the template itself writes something in front of an
answer that the row does not contain (an empty block of reasoning). The target goes on through the end-of-turn
token. A plain answer must be exactly its text between what the template writes around plain answers, which is
asked once (probe.py). Where it is not, both are read from a twin of the conversation, rendered by the same
template, in which the assistant's texts are sentinels. What does not fit together is refused.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.conversation import Message, describe
from luthier.data.form import SENTINEL, call_sentinel, content_sentinel, num_texts, owner, reasoning_of
from luthier.data.learn import Lesson
from luthier.data.marking import Marked, Region
from luthier.data.probe import Literals, common_start, split_at_sentinel
from luthier.data.tokens import Span, WeightedSpan
from luthier.errors import RowRefused


@dataclass(frozen=True)
class Endings:
    """How the end of a turn is recognised."""

    tokens: re.Pattern[str]
    """Any added token that is not white space."""
    end_of_text: str | None
    """The tokenizer's `eos_token`, which ends a turn even if others follow it."""

    _known: dict[Any, Any] = field(default_factory=dict)
    """Answers that were worked out before; there are few."""

    def length(self, suffix: str) -> int:
        """How much of the text after an answer belongs to it: all of it if no end of turn is in it."""
        if suffix not in self._known:
            self._known[suffix] = self._length(suffix)
        return self._known[suffix]

    def _length(self, suffix: str) -> int:
        if self.end_of_text and self.end_of_text in suffix:
            return suffix.index(self.end_of_text) + len(self.end_of_text)
        found = list(self.tokens.finditer(suffix))
        return found[-1].end() if found else len(suffix)

    def beyond(self, literals: Literals) -> str:
        """The end of turn, for a template that writes it only when it comes to what follows the turn."""
        key = literals.ending, literals.after
        if key not in self._known:
            self._known[key] = self._beyond(literals)
        return self._known[key]

    def _beyond(self, literals: Literals) -> str:
        if self.tokens.search(literals.ending):
            return ""
        found = self.tokens.match(literals.after.lstrip())
        return literals.after[: literals.after.index(found[0])] + found[0] if found else ""


def learned_spans(
    lesson: Lesson, marked: Marked, twin: Callable[[], Marked], literals: Literals, endings: Endings
) -> list[WeightedSpan]:
    """The character spans of what is to be learned, ends of turns included, each with its weight.

    `marked` is the text of the lesson's messages and `twin` gives that of their twin, if it is needed.

    Raises:
        RowRefused: if a message left no trace, or its part of the text is not certain.
    """
    messages, weights = lesson.conversation.messages, lesson.weights
    refuse_lost(messages, marked)
    if lesson.everything and all(weight == 1 for weight in weights):
        return [(0, len(marked.text), 1.0)]
    if not literals.in_loop:
        return _generation_spans(lesson, marked, endings)
    if lesson.everything:
        return _whole(lesson, marked)
    around: Marked | None = None
    spans: list[WeightedSpan] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant" and not weights[number]:
            continue
        span = _plain_span(message, marked.of(number), marked.text, literals, endings)
        if span is None:
            region = _region(marked, number, describe(messages, number))
            around = around or twin()
            _refuse_moved(messages, number, marked, around)
            if weights[number]:
                span = _span(marked, region, message, number, around, literals, endings)
        if span is not None and weights[number]:
            spans.append((span[0], span[1], weights[number]))
    return spans


def _plain_span(
    message: Message, regions: Sequence[Region], text: str, literals: Literals, endings: Endings
) -> Span | None:
    """The span of an answer whose region is exactly its text between what the template writes around plain answers.

    So nothing else can be in it, and no twin is needed. None if it is not so simple.
    """
    content = message.get("content")
    if message["role"] != "assistant" or not content or message.get("tool_calls") or len(regions) != 1:
        return None
    if content[0].isspace() or content[-1].isspace() or reasoning_of(message):
        return None
    start, end = regions[0].start, regions[0].end
    for before, after in literals.sides:
        at = start + len(before)
        if end - start != len(before) + len(content) + len(after):
            continue
        if text.startswith(before, start) and text.startswith(content, at) and text.endswith(after, at, end):
            header = _trimmed(before, literals.generation)
            if len(literals.generation) > len(header) and text.startswith(literals.generation, start):
                header = literals.generation
            return start + len(header), _end(text, end, after, literals, endings)
    return None


def _end(text: str, end: int, suffix: str, literals: Literals, endings: Endings) -> int:
    """Where a target ends whose region ends there with this suffix."""
    beyond = endings.beyond(literals)
    if beyond and not endings.tokens.search(suffix) and text.startswith(beyond, end):
        return end + len(beyond)
    return end - len(suffix) + endings.length(suffix)


def _whole(lesson: Lesson, marked: Marked) -> list[WeightedSpan]:
    """All of the text, with the regions of messages that have a weight of their own at that weight."""
    messages, weights = lesson.conversation.messages, lesson.weights
    own = [number for number, weight in enumerate(weights) if weight != 1]
    regions = [_region(marked, number, describe(messages, number)) for number in own]
    spans: list[WeightedSpan] = []
    done = 0
    for region in sorted(regions, key=lambda region: region.start):
        spans += [(done, region.start, 1.0), (region.start, region.end, weights[region.message])]
        done = region.end
    return [*spans, (done, len(marked.text), 1.0)]


def _span(
    marked: Marked,
    region: Region,
    message: Message,
    number: int,
    twin: Marked,
    literals: Literals,
    endings: Endings,
) -> Span:
    text = marked.text[region.start : region.end]
    around_content = split_at_sentinel(twin, number)
    around_all = split_at_sentinel(twin, number, calls=True)
    place = f"message {number + 1} ({message['role']})"
    if message["role"] != "assistant":
        before = around_content[0] if around_content else None
        header = before if before is not None and text.startswith(before) else None
    else:
        headers = (around_content[0],) if around_content else literals.headers
        header = _header(text, headers, literals.generation, bare=not _says_anything(message))
        if header is None and (reasoning_of(message) or "").strip():
            header = _before_reasoning(text, headers, literals.generation)
    if header is None:
        raise RowRefused(
            f"where the answer of {place} begins is not certain: the template starts it in its own way"
        )
    suffix = around_all[1] if around_all else _tail(text, endings)
    if not text.endswith(suffix) or len(header) + len(suffix) > len(text):
        raise RowRefused(
            f"where the answer of {place} ends is not certain: the template ends it in its own way"
        )
    return region.start + len(header), _end(marked.text, region.end, suffix, literals, endings)


def _before_reasoning(text: str, headers: Sequence[str], generation: str) -> str | None:
    """The header of an answer that reasons although the generation prompt says that it does not.

    What the two have in common is prompt; where they differ, the tag of the reasoning begins.
    """
    shared = common_start(text, generation)
    if not shared or not any(header.startswith(shared) for header in headers):
        return None
    return (
        shared[: shared.rindex("<")] if "<" in shared and ">" not in shared[shared.rindex("<") :] else shared
    )


def _header(text: str, headers: Sequence[str], generation: str, bare: bool) -> str | None:
    """The part of an assistant's region that is prompt; None if it cannot be told."""
    plain = [_trimmed(header, generation) for header in headers]
    fits = [header for header in (generation, *plain) if header and text.startswith(header)]
    shared = [common_start(generation, header) for header in plain]
    fits += [header for header in shared if header and text.startswith(header)]
    if bare:
        # Nothing in this region comes from the row, so whatever stands before an answer is the template's.
        fits += [common_start(text, header) for header in plain]
    if fits:
        return max(fits, key=len)
    # A template without any header, or one that writes it at the end of the user's turn.
    return "" if "" in plain else None


def _trimmed(header: str, generation: str) -> str:
    """A header without white space that the generation prompt lacks: the model has to write that itself."""
    beyond = header[len(generation) :]
    return generation if header.startswith(generation) and beyond.isspace() else header


def _says_anything(message: Message) -> bool:
    return bool(
        (message.get("content") or "").strip()
        or message.get("tool_calls")
        or (reasoning_of(message) or "").strip()
    )


def _tail(text: str, endings: Endings) -> str:
    """The end of turn of a region whose twin shows no sentinel: the added token that it ends with, if any."""
    found = list(endings.tokens.finditer(text))
    return text[found[-1].start() :] if found and not text[found[-1].end() :].strip() else ""


def _region(marked: Marked, number: int, place: str) -> Region:
    regions = marked.of(number)
    if not regions:
        raise RowRefused(f"the template does not render {place}")
    if len(regions) > 1:
        raise RowRefused(f"the template renders {place} in {len(regions)} places")
    return regions[0]


def _refuse_moved(messages: Sequence[Message], number: int, marked: Marked, twin: Marked) -> None:
    """Refuses a message whose text or tool calls the template drops or does not keep in its own turn."""
    message, place = messages[number], describe(messages, number)
    text = _text_of(twin, number)
    if any(owner(found)[0] != number for found in SENTINEL.finditer(text)):
        raise RowRefused(f"the template writes another message into the turn of {place}")
    for other in {inner for outer, inner in marked.within if outer == number != inner}:
        content = (messages[other].get("content") or "").strip()
        if messages[other]["role"] in ("assistant", "tool"):
            continue  # these are sentinels in the twin
        if content and content in _text_of(marked, number):
            raise RowRefused(f"the template may write {describe(messages, other)} into the turn of {place}")
    if (message.get("content") or "").strip():
        sentinel = content_sentinel(number)
        if sentinel not in text:
            raise RowRefused(f"the template leaves out the text of {place}")
        if twin.text.count(sentinel) != text.count(sentinel):
            raise RowRefused(f"the template writes the text of {place} outside of its turn too")
    for index, call in enumerate(message.get("tool_calls") or []):
        sentinel = call_sentinel(number, index)
        if (found := text.count(sentinel)) < num_texts(call):
            part = "a part of tool call" if found else "tool call"
            raise RowRefused(f"the template leaves out {part} {index + 1} of {place}")
        # The header of a result may name the call that it answers; that is prompt.
        results = [other for other, one in enumerate(messages) if one["role"] == "tool"]
        elsewhere = sum(_text_of(twin, other).count(sentinel) for other in results)
        if twin.text.count(sentinel) != found + elsewhere:
            raise RowRefused(f"the template writes the tool calls of {place} outside of its turn too")


def _text_of(marked: Marked, number: int) -> str:
    return "".join(marked.text[region.start : region.end] for region in marked.of(number))


def refuse_lost(messages: Sequence[Message], marked: Marked) -> None:
    """Refuses a conversation of which a message that is not the assistant's left no trace in the text."""
    for number, message in enumerate(messages):
        content = (message.get("content") or "").strip()
        if message["role"] == "assistant" or not content or any(marked.of(number)):
            continue
        word = max(content.split(), key=len)
        if word not in marked.text and json.dumps(word, ensure_ascii=False)[1:-1] not in marked.text:
            raise RowRefused(f"the template does not render {describe(messages, number)}")


def _generation_spans(lesson: Lesson, marked: Marked, endings: Endings) -> list[WeightedSpan]:
    """The template's own `{% generation %}` blocks, one for each assistant message, up to the end of turn."""
    messages, weights = lesson.conversation.messages, lesson.weights
    others = [i for i, message in enumerate(messages) if message["role"] != "assistant" and weights[i]]
    if others or lesson.everything:
        raise RowRefused(
            f"where {describe(messages, (others or [0])[0])} stands is not certain: the template only says where "
            "answers stand"
        )
    assistants = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(assistants) != len(marked.generations):
        raise RowRefused(
            f"the template wrote {len(marked.generations)} generation blocks "
            f"for {len(assistants)} assistant messages"
        )
    spans = []
    for number, (start, end) in zip(assistants, marked.generations, strict=True):
        suffix = _tail(marked.text[start:end], endings)
        if weights[number] and end > start:
            spans.append((start, end - len(suffix) + endings.length(suffix), weights[number]))
    return spans

"""Rows that the model's chat template writes: conversations, judged answers, answers in steps, prompts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from luthier.data.batch import Example, Segment
from luthier.data.chat import ChatTemplate, Encoded
from luthier.data.content import Answers, Prompt, Steps
from luthier.data.conversation import Conversation
from luthier.data.draft import STEP_WEIGHT, Draft, EncodedRow, EncodeOptions, dropped, one_segment, too_long
from luthier.data.learn import Lesson, lesson_of
from luthier.data.overlong import Shortened, split, without_end_of_answer, without_oldest
from luthier.data.tokens import Tokens
from luthier.errors import RowRefused

STEP_SEPARATOR = "\n\n"
"""What stands between the steps of an answer."""


class ChatDrafts:
    """Makes drafts of rows that need a template."""

    def __init__(self, template: ChatTemplate, options: EncodeOptions):
        self._template = template
        self._options = options

    def conversation(self, content: Conversation) -> Draft:
        """A conversation, of which `data.learn` says what is learned."""
        lesson = lesson_of(self._with_thinking(content), self._options.learn)
        rendered = self._template.render(lesson)

        def whole(tokens: Sequence[Tokens]) -> EncodedRow:
            return _row([self._template.encoded(tokens[0], rendered)])

        def shorten(row: EncodedRow, length: int) -> EncodedRow:
            shortened = self._shorten(lesson, length)
            reason = f"{too_long(length, self._options)}; {shortened.what}"
            return replace(_row(shortened.parts), status="truncated", reason=reason)

        return Draft([rendered.text], whole, shorten)

    def answers(self, content: Answers) -> Draft:
        """Judged answers to one context: a forest whose root is what all of them begin with."""
        numbers = range(len(content.answers))
        lessons = [lesson_of(self._with_thinking(content.conversation(number))) for number in numbers]
        rendered = [self._template.render(lesson) for lesson in lessons]

        def whole(tokens: Sequence[Tokens]) -> EncodedRow:
            both = zip(tokens, rendered, strict=True)
            return _judged([self._template.encoded(one, text) for one, text in both], content)

        def shorten(row: EncodedRow, length: int) -> EncodedRow:
            return self._shorten_judged(lessons, content, row, length)

        return Draft([one.text for one in rendered], whole, shorten)

    def steps(self, content: Steps) -> Draft:
        """An answer in steps: only the token after each has a weight, which says its label (`STEP_WEIGHT`)."""
        steps = [step.strip() for step in content.steps]
        if not all(steps):
            raise RowRefused(f"step {[bool(step) for step in steps].index(False) + 1} is empty")
        answer = {"role": "assistant", "content": STEP_SEPARATOR.join(steps)}
        lesson = lesson_of(self._with_thinking(Conversation([*content.context, answer])), "last")
        rendered = self._template.render(lesson)
        first = max(start for start, _, _ in rendered.spans)
        start = rendered.text.find(answer["content"], first)
        if start < 0:
            raise RowRefused("the template changes the text of the answer, so its steps cannot be found")
        lengths = np.array([len(step) + len(STEP_SEPARATOR) for step in steps])
        ends = start + np.cumsum(lengths) - len(STEP_SEPARATOR)

        def whole(tokens: Sequence[Tokens]) -> EncodedRow:
            encoded = self._template.encoded(tokens[0], rendered)
            weights = np.zeros(len(encoded.ids), dtype=np.float32)
            last = np.searchsorted(tokens[0].offsets[:, 0], ends, side="left") - 1
            if len(set(last.tolist())) < len(steps):
                raise RowRefused("two steps end in the same token, so they cannot be judged apart")
            if last[-1] + 1 == len(weights):
                raise RowRefused(
                    "the chat template ends with the last step, so nothing stands where it is judged"
                )
            weights[last + 1] = STEP_WEIGHT + np.array(content.labels, dtype=np.float32)
            return EncodedRow((one_segment(encoded.ids, weights),), encoded.text, left_out=encoded.left_out)

        return Draft([rendered.text], whole, self._drop("an answer in steps"))

    def prompt(self, content: Prompt) -> Draft:
        """A prompt up to where the model begins to write; nothing in it is learned."""
        own = self._with_thinking(Conversation(list(content.messages), content.tools, content.template_args))
        text = self._template.checked_prompt(own)

        def whole(tokens: Sequence[Tokens]) -> EncodedRow:
            ids = tokens[0].ids
            return EncodedRow((one_segment(ids, np.zeros(len(ids), dtype=np.float32)),), text)

        return Draft([text], whole, self._drop("a prompt"))

    def _with_thinking(self, conversation: Conversation) -> Conversation:
        """The conversation with the switch for thinking set, unless the row sets one itself."""
        switches = self._template.thinking_switches(self._options.thinking)
        if not switches or any(name in conversation.template_args for name in switches):
            return conversation
        return replace(conversation, template_args={**switches, **conversation.template_args})

    def _shorten(self, lesson: Lesson, length: int) -> Shortened:
        most, encode = self._options.max_length, self._template.encode
        match self._options.overlong:
            case "truncate_oldest_turns":
                return without_oldest(lesson, most, encode)
            case "truncate_response":
                return without_end_of_answer(lesson, most, encode, length, self._template.encoder.token_ends)
            case "split":
                return split(lesson, most, encode)
        raise dropped(length, self._options)

    def _drop(self, what: str) -> Any:
        def shorten(row: EncodedRow, length: int) -> EncodedRow:
            raise dropped(length, self._options, what)

        return shorten

    def _shorten_judged(
        self, lessons: Sequence[Lesson], content: Answers, row: EncodedRow, length: int
    ) -> EncodedRow:
        """The same cut for all answers, so that they stay comparable: oldest exchanges of their context."""
        if self._options.overlong != "truncate_oldest_turns":
            raise dropped(length, self._options, "a row with judged answers")
        kept: list[EncodedRow] = []

        def encode(first: Lesson) -> Encoded:
            num_removed = len(content.context) + len(content.answers[0]) - len(first.weights)
            parts = [first, *(_without(lesson, first, num_removed) for lesson in lessons[1:])]
            kept.append(_judged([self._template.encode(part) for part in parts], content))
            example = kept[-1].examples[0]
            ids = np.concatenate([segment.ids for segment in example.segments])
            return Encoded(ids, np.zeros(len(ids), dtype=np.float32), "", len(kept) - 1)

        shortened = without_oldest(lessons[0], self._options.max_length, encode, keep_learned=True)
        reason = f"{too_long(length, self._options)}; {shortened.what}"
        return replace(kept[shortened.parts[0].left_out], status="truncated", reason=reason)


def _without(lesson: Lesson, first: Lesson, num_removed: int) -> Lesson:
    """A lesson less the messages that its sister lost, which stand behind the leading system messages."""
    messages, kept = lesson.conversation.messages, first.conversation.messages
    num_leading = next((i for i, message in enumerate(kept) if message is not messages[i]), len(kept))
    return lesson.part([*range(num_leading), *range(num_leading + num_removed, len(messages))])


def _row(parts: Sequence[Encoded]) -> EncodedRow:
    examples = tuple(one_segment(part.ids, part.weights) for part in parts)
    return EncodedRow(examples, "".join(part.text for part in parts), left_out=sum(p.left_out for p in parts))


def _judged(encoded: Sequence[Encoded], content: Answers) -> EncodedRow:
    if content.judged == "pair" and np.array_equal(encoded[0].ids, encoded[1].ids):
        raise RowRefused("the chosen and the rejected answer are the same, so there is nothing to prefer")
    columns: dict[str, float | tuple[float, ...]] = dict(content.facts)
    shared = _num_shared(encoded) if len(encoded) > 1 else 0
    segments: list[Segment] = []
    if shared:
        segments.append(Segment(encoded[0].ids[:shared], encoded[0].weights[:shared]))
    segments += [Segment(one.ids[shared:], one.weights[shared:], 0 if shared else -1) for one in encoded]
    return EncodedRow(
        (Example(tuple(segments), columns=columns),), encoded[0].text, left_out=encoded[0].left_out
    )


def _num_shared(encoded: Sequence[Encoded]) -> int:
    """How many tokens all begin with before the first that any of them learns; each keeps one for itself."""
    first = encoded[0].ids
    shared = min(int(np.flatnonzero(one.weights)[0]) for one in encoded)
    for other in encoded[1:]:
        num = min(shared, len(other.ids))
        differ = np.flatnonzero(first[:num] != other.ids[:num])
        shared = int(differ[0]) if len(differ) else num
    return shared

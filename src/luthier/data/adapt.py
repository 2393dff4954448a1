"""What a method learns from, made out of what a row says.

Supervised fine-tuning reads conversations: of a preference pair it learns the chosen answer, of a ranking the
best one. Nothing is made up: a row that lacks what a method needs is refused, one that would teach the wrong
thing is set aside.
"""

from collections.abc import Callable, Mapping
from typing import Any

from luthier.data.content import Answers, Content, Conversation, Labelled, Prompt, Related, Steps, kind_of
from luthier.data.conversation import NO_ANSWER
from luthier.data.notes import Notes
from luthier.data.values import unpacked
from luthier.errors import RowRefused, SetAside

IMITATED = ("conversation", "text", "tokens", "pieces")
"""Kinds that are learned as they stand; a method that reads conversations takes all of them."""
WANTED = (
    "conversation",
    "answers",
    "pair",
    "label",
    "ranking",
    "triple",
    "steps",
    "prompt",
    "class",
    "number",
    "similar",
    "relevance",
)
"""What a method can ask for. `pair`, `label`, `ranking` and `triple` are answers that are judged in this way, `class`
and `number` are labels of texts, `similar` and `relevance` what is learned of a query and its texts."""
_RIGHT = 0.5
"""The label from which on a step is right: labels are true and false, 1 and -1, or shares of raters."""
_NAMES = {
    "conversation": "a conversation",
    "text": "plain text",
    "tokens": "token ids",
    "pieces": "pieces of text",
    "answers": "answers that are judged",
    "steps": "an answer in steps",
    "prompt": "a prompt without an answer",
    "labelled": "a text with a label",
    "related": "a query with texts",
}


def adapt(
    content: Content,
    wanted: str,
    notes: Notes | None = None,
    where: str = "",
    rest: Mapping[str, Any] | None = None,
) -> Content:
    """The content that a method learns from.

    Args:
        content: what the row says.
        wanted: what the method reads, one of `WANTED`.
        notes: takes what should be told about the choice made.
        where: `file:line` of the row, for the notes.
        rest: columns of the row that its format does not read; a prompt keeps them.

    Raises:
        RowRefused: if the row lacks what the method needs.
        SetAside: if it has it, but should not be learned from.
    """
    assert wanted in WANTED, f"{wanted} is one of {WANTED}"

    def note(what: str) -> None:
        if notes is not None:
            notes.add(what, where)

    if wanted == "conversation" and kind_of(content) in IMITATED:
        return content
    if wanted == "ranking" and isinstance(content, Answers) and content.judged == "ranking":
        _check_unequal(content, 0)
    if kind_of(content) == wanted or (isinstance(content, Answers) and content.judged == wanted):
        return content
    if isinstance(content, Labelled) and wanted in ("class", "number"):
        return _labelled_as(content, wanted)
    if isinstance(content, Related) and wanted in ("similar", "relevance"):
        return content if wanted == "relevance" else _to_compare(content, note)
    if wanted == "conversation":
        return _to_imitate(content, note)
    if wanted == "prompt":
        return _to_ask(content, note, rest or {})
    if isinstance(content, Answers) and wanted in ("answers", "pair", "label", "triple"):
        return _judged_as(content, wanted, note)
    raise RowRefused(f"the row is {_NAMES[kind_of(content)]}; the method needs {_needed(wanted)}")


def _needed(wanted: str) -> str:
    return {
        "answers": "answers that are judged, such as `chosen` and `rejected`",
        "pair": "a better and a worse answer, such as `chosen` and `rejected`",
        "label": "an answer with a `label` that says whether it is good",
        "ranking": "a list of answers with `scores` or `ranks`",
        "triple": "a list of three answers or more with `scores` or `ranks`; or write `format: triple`, for rows with "
        "`reference`, `chosen`, `rejected`",
        "steps": "an answer in steps: `prompt`, `completions` and `labels`",
        "class": "a `text` with the name of its class in `label`",
        "number": "a `text` with a number in `label`",
        "similar": "texts that belong together, such as `anchor` and `positive`",
        "relevance": "a `query` with `documents` and their `labels`",
    }[wanted]


def _to_imitate(content: Content, note: Callable[[str], None]) -> Content:
    if isinstance(content, Answers):
        if content.judged == "label":
            if not content.facts["label"][0]:
                raise SetAside("the answer is labelled as a bad one, and the method imitates answers")
            note("answers with a label: the method imitates answers, so only the good ones are learned")
        elif content.judged == "pair":
            note("preferences: the method imitates answers, so only the chosen one is learned")
        else:
            note("rankings: the method imitates answers, so only the best one is learned")
        return content.conversation(0)
    if isinstance(content, Steps):
        if not all(label >= _RIGHT for label in content.labels):
            raise SetAside("a step of the answer is labelled as wrong, and the method imitates answers")
        note(
            "answers in steps: the method imitates answers, so the steps are joined, where all are right "
            f"(labels of {_RIGHT} or more)"
        )
        answer = {"role": "assistant", "content": "\n".join(content.steps)}
        return Conversation([*content.context, answer], weights=(*[0.0] * len(content.context), 1.0))
    if isinstance(content, Labelled):
        raise RowRefused(
            "the row has `label`, which changes what it means and is not read by this method; map `label` to `-` in "
            "`columns` to train on the text alone"
        )
    if isinstance(content, Related):
        raise RowRefused("the row is a query with texts that belong to it, and the method imitates answers")
    assert isinstance(content, Prompt), "every other kind is imitated as it is"
    raise RowRefused(NO_ANSWER)


def _to_ask(content: Content, note: Callable[[str], None], rest: Mapping[str, Any]) -> Prompt:
    if isinstance(content, Answers):
        note("answers that are judged: the method answers itself, so only what was asked is used")
        return Prompt(content.context, dict(rest), content.tools, content.template_args)
    if isinstance(content, Steps):
        note("answers in steps: the method answers itself, so only what was asked is used")
        return Prompt(content.context, dict(rest))
    if not isinstance(content, Conversation):
        raise RowRefused(f"the row is {_NAMES[kind_of(content)]}; the method needs a prompt to answer")
    last = max(i for i, message in enumerate(content.messages) if message["role"] == "assistant")
    if not last:
        raise RowRefused("nothing stands before the answer, so there is no prompt")
    note("conversations: the method answers itself, so what is before the last answer is the prompt")
    columns: dict[str, Any] = {"answer": content.messages[last].get("content"), **rest}
    return Prompt(tuple(content.messages[:last]), columns, content.tools, content.template_args)


def _labelled_as(content: Labelled, wanted: str) -> Labelled:
    if wanted == "class" or not isinstance(content.label, str):
        return content
    value = unpacked(content.label, "`label`")
    if not isinstance(value, float):
        raise RowRefused(f"`label` is {content.label!r}; the method needs a number")
    return Labelled(content.text, value)


def _to_compare(content: Related, note: Callable[[str], None]) -> Related:
    good = [text for text, label in zip(content.texts, content.labels, strict=True) if label >= _RIGHT]
    if not good:
        raise RowRefused("no text of the row belongs to its query, so there is nothing to draw near")
    bad = [text for text, label in zip(content.texts, content.labels, strict=True) if label < _RIGHT]
    made = Related(content.query, (good[0], *bad), (1.0, *[0.0] * len(bad)))
    if made == content:
        return content
    note(
        f"relevance: texts of {_RIGHT} or more belong to the query; the first of them and all others are used"
    )
    return made


def _judged_as(content: Answers, wanted: str, note: Callable[[str], None]) -> Answers:
    if wanted == "answers":
        return content
    if wanted == "pair" and content.judged == "ranking":
        _check_unequal(content, 0)
        note("rankings: the method compares two answers, so the best and the worst are used")
        return _some(content, (0, -1), "pair")
    if wanted == "triple" and content.judged == "ranking" and len(content.answers) > 2:
        _check_unequal(content, 1)
        note("rankings: the method imitates the best answer and compares the second with the worst")
        return _some(content, (0, 1, -1), "triple")
    if wanted == "label" and content.judged == "pair":
        note("preferences: the method judges answers one by one, so the chosen one is a good one")
        return _with(content, content.answers, "label", {**content.facts, "label": (1.0, 0.0)})
    raise RowRefused(
        f"the row's answers are judged by a {content.judged}; the method needs {_needed(wanted)}"
    )


def _check_unequal(content: Answers, better: int) -> None:
    """Sets the row aside if the worst answer of a ranking is as good as this one."""
    values = next(iter(content.facts.values()), ())
    if values and values[better] == values[-1]:
        which = ("best", "second")[better]
        raise SetAside(f"the {which} and the worst answer have the same score, so there is nothing to prefer")


def _some(content: Answers, numbers: tuple[int, ...], judged: Any) -> Answers:
    facts = {name: tuple(own[i] for i in numbers) for name, own in content.facts.items()}
    return _with(content, tuple(content.answers[i] for i in numbers), judged, facts)


def _with(content: Answers, answers: Any, judged: Any, facts: dict[str, tuple[float, ...]]) -> Answers:
    return Answers(content.context, answers, judged, facts, content.tools, content.template_args)

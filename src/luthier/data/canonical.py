"""One canonical row for every kind of content, as `luthier data convert` writes it.

    conversation   {"messages": [...], "tools", "chat_template_kwargs"}; a message that does not weigh 1 has a `weight`
    text           {"text": ...} with the other columns of the row
    token ids      {"input_ids": [...], "labels": [...]}, -100 where a token is not learned
    pieces         {"segments": [{"text": ..., "label": true}, ...]}
    a pair         {"prompt": [...], "chosen": [...], "rejected": [...]} with `score_…` and `margin`
    a label        {"prompt": [...], "completion": [...], "label": true}
    a ranking      {"prompt": [...], "completions": [[...], ...], "scores" or "ranks": [...]}, the best first
    steps          {"prompt": [...], "completions": [...], "labels": [...]}
    a prompt       {"prompt": [...]} with the other columns of the row
    a labelled text        {"text": ..., "label": ...}
    a query with texts     {"query": ..., "documents": [...], "labels": [...]}

`prompt`, `chosen`, `rejected`, `completion` and each of `completions` are lists of messages, but for the steps,
which are texts. Read again, such a row says the same; this is checked for every row.
"""

import json
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from luthier.data.content import Answers, Content, Labelled, Pieces, Prompt, Related, Steps, Text, TokenIds
from luthier.data.conversation import Conversation, Message
from luthier.data.detect import detect
from luthier.data.formats.tokenised import IGNORED
from luthier.errors import RowRefused

Record = dict[str, Any]


def canonical_line(content: Content) -> str:
    """The canonical row of a content as one line of JSON.

    Raises:
        RowRefused: if JSON cannot hold it, or it would not say the same when it is read again.
    """
    record = record_of(content)
    line = _line(record)
    again = json.loads(line)
    format = detect(again)
    if format is None or not same(format.convert(again), content):
        raise RowRefused(
            "the row would say something else when it is read again: its columns "
            f"{', '.join(f'`{name}`' for name in record)} are those of {format.name if format else 'no format'}; "
            'leave columns out with `columns: {NAME: "-"}`'
        )
    return line


def record_of(content: Content) -> Record:
    """The canonical row of a content, as JSON values and whatever its other columns hold."""
    if isinstance(content, Conversation):
        messages = [_weighted(message, content.weight(i)) for i, message in enumerate(content.messages)]
        return {"messages": messages, **_variables(content)}
    if isinstance(content, Text):
        return {"text": content.text, **content.columns}
    if isinstance(content, TokenIds):
        return {"input_ids": content.ids.tolist(), "labels": _labels(content)}
    if isinstance(content, Pieces):
        return {"segments": [{"text": text, "label": learned} for text, learned in content.pieces]}
    if isinstance(content, Steps):
        context = list(content.context)
        return {"prompt": context, "completions": list(content.steps), "labels": list(content.labels)}
    if isinstance(content, Prompt):
        column = "messages" if "prompt" in content.columns else "prompt"
        given = {name: value for name, value in _variables(content).items() if name not in content.columns}
        return {column: list(content.messages), **content.columns, **given}
    if isinstance(content, Labelled):
        return {"text": content.text, "label": content.label}
    if isinstance(content, Related):
        return {"query": content.query, "documents": list(content.texts), "labels": list(content.labels)}
    return {**_judged(content), **_variables(content)}


def same(one: Content, other: Content) -> bool:
    """Whether two contents say the same, numbers and texts to the last bit."""
    return type(one) is type(other) and _plain(one) == _plain(other)


def _judged(content: Answers) -> Record:
    context, answers = list(content.context), [list(answer) for answer in content.answers]
    if content.judged == "label":
        return {"prompt": context, "completion": answers[0], "label": bool(content.facts["label"][0])}
    if content.judged == "ranking":
        numbers = {f"{name}s": list(values) for name, values in content.facts.items()}
        return {"prompt": context, "completions": answers, **numbers}
    record: Record = {"prompt": context, "chosen": answers[0], "rejected": answers[1]}
    if any(answer[0]["role"] != "assistant" for answer in answers):
        # Such an answer looks like a conversation of its own, so both are written as whole ones.
        record = {"chosen": context + answers[0], "rejected": context + answers[1]}
    if "score" in content.facts:
        record["score_chosen"], record["score_rejected"] = content.facts["score"]
    if "margin" in content.facts:
        record["margin"] = content.facts["margin"][0]
    return record


def _weighted(message: Message, weight: float) -> Message:
    return message if weight == 1 else {**message, "weight": weight}


def _variables(content: Conversation | Answers | Prompt) -> Record:
    given = {"tools": content.tools, "chat_template_kwargs": content.template_args}
    return {name: value for name, value in given.items() if value}


def _labels(content: TokenIds) -> list[int]:
    return np.where(content.weights > 0, content.ids, IGNORED).tolist()


def _line(record: Record) -> str:
    try:
        line = json.dumps(record, ensure_ascii=False)
    except (TypeError, ValueError):
        name = next((key for key, value in record.items() if not _is_json(value)), "?")
        raise RowRefused(
            f"`{name}` holds a {type(record[name]).__name__}, which JSON cannot hold; "
            f'leave it out with `columns: {{{name}: "-"}}`'
        ) from None
    # Half surrogates are no UTF-8; as escapes they survive.
    return line if line.isascii() or _is_utf8(line) else json.dumps(record)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, Conversation) and not value.weights:
        value = Conversation(value.messages, value.tools, value.template_args, (1.0,) * len(value.messages))
    if isinstance(value, np.ndarray):
        return value.tolist()
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value

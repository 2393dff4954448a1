"""A few of a run's own rows: as prompts, to ask what was exported the same as what was trained, or whole."""

import heapq
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import luthier.methods
from luthier.config.plugins import load_plugin
from luthier.config.tree import Config
from luthier.data.chat import ChatTemplate
from luthier.data.content import Answers, Content, Labelled, Pieces, Prompt, Related, Steps, Text
from luthier.data.conversation import Conversation
from luthier.data.holdout import content_hash, is_held_out
from luthier.data.pipeline import Pipeline, Plan, PreparedRow
from luthier.data.registries import expand_registries
from luthier.data.sources import Row
from luthier.data.tokens import TokenEncoder
from luthier.errors import LuthierError, RowRefused
from luthier.export.verify import prompts as asked
from luthier.models.inference import load_tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_ROWS = 5000
"""Rows that are looked at; further ones are not read."""
MOST_TOKENS = 512
MEASURED = 64
"""Rows that the importance of weights is measured on."""
SPARE = 8
"""For each prompt so many rows are kept, as some are too long or ask nothing."""


def own_prompts(
    config: Config, tokenizer: "PreTrainedTokenizerFast", template: ChatTemplate | None, number: int
) -> asked.Prompts:
    """Prompts as the run's template writes them, up to where the answer begins.

    They are of the rows with the smallest hash of their content, which are those held out if any are
    (`data/holdout.py`). Nothing is downloaded. If the rows cannot be read any more, texts written for this purpose
    take their place, which is told.
    """
    encoder = TokenEncoder(tokenizer)
    why = "none of the first rows is short enough or asks anything"
    try:
        found = list(islice(_prompts(config, template, encoder, number), number))
    except (LuthierError, OSError) as error:
        found, why = [], str(error).strip().splitlines()[0]
    if found:
        data = config.data
        if data.eval_path:
            return asked.Prompts(found, "data.eval_path")
        held_out = data.eval_rows or data.eval_fraction
        return asked.Prompts(found, "held-out rows" if held_out else "rows that were trained on")
    texts = [_asking(Conversation([{"role": "user", "content": text}]), template) for text in asked.OUR_WORDS]
    made = [one for text in texts[:number] if (one := _tokens(text, encoder)) is not None]
    return asked.Prompts(made, "texts written for this", f"The run's own rows could not be asked: {why}")


def rows_by(config: Config, folder: Path) -> list[list[int]]:
    """`own_rows`, up to `MEASURED` of them, by the tokenizer and the template in the folder of a model."""
    tokenizer = load_tokenizer_folder(folder)
    template = ChatTemplate(tokenizer, None, config.data.template_args) if tokenizer.chat_template else None
    return own_rows(config, tokenizer, template, MEASURED)


def own_rows(
    config: Config, tokenizer: "PreTrainedTokenizerFast", template: ChatTemplate | None, number: int
) -> list[list[int]]:
    """Tokens of whole rows that were trained on, those of answers included, at most `MOST_TOKENS` of each; none if they
    cannot be read. They are those with the largest hashes, so none that `own_prompts` asks while there are enough: what
    was rounded by them is to be proven by others."""
    encoder = TokenEncoder(tokenizer)
    try:
        texts = list(islice(_texts(config, template, number), number))
    except (LuthierError, OSError):
        return []
    return [ids for text in texts if (ids := encoder.encode(text).ids.tolist()[:MOST_TOKENS])]


def _texts(config: Config, template: ChatTemplate | None, number: int) -> Iterator[str]:
    for row in _rows(config, number * SPARE, trained=True):
        if row.content is None:
            continue
        try:
            if isinstance(row.content, Conversation) and template is not None:
                yield template.render(row.content).text
            elif isinstance(row.content, Text | Labelled):
                yield row.content.text
            elif (prompt := _prompt(row.content, template, alone=False)) is not None:
                yield prompt.text
        except RowRefused:
            continue


def _prompts(
    config: Config, template: ChatTemplate | None, encoder: TokenEncoder, number: int
) -> Iterator[asked.Prompt]:
    fixed = template is None or bool(template.template_args) or "strftime_now" in template.source
    for row in _rows(config, number * SPARE):
        if row.content is None:
            continue
        try:
            prompt = _prompt(row.content, template, alone=not fixed)
        except RowRefused:
            continue
        found = _tokens(prompt, encoder) if prompt is not None else None
        if found is not None and len(found.ids) <= MOST_TOKENS:
            yield found


def _rows(config: Config, most: int, *, trained: bool = False) -> list[PreparedRow]:
    """Those with the smallest hashes among the first, held-out ones alone if there are any; or, of those that were
    trained on, the ones with the largest."""
    data = config.data
    apart = bool(data.eval_path) and not trained
    if data.eval_rows and not data.eval_path and not trained:
        most = min(most, data.eval_rows)
    sets, _ = expand_registries(data.eval_sets if apart else data.all_sets)
    reads = load_plugin(luthier.methods, config.method.name).reads
    plan = Plan(tuple(sets), None, reads, seed=config.seed, offline=True)
    rows = [row for row, _ in islice(plan.open().rows(), MOST_ROWS) if row.record is not None]
    if data.eval_fraction and not data.eval_path:
        rows = [row for row in rows if is_held_out(row.record or {}, data.eval_fraction) != trained]

    def place(row: Row) -> int:
        return content_hash(row.record or {})

    chosen = (heapq.nlargest if trained else heapq.nsmallest)(most, rows, key=place)
    if trained and data.eval_rows and not data.eval_path:
        chosen = chosen[: max(len(rows) - data.eval_rows, 0)]
    return list(Pipeline(plan, check_files=False).prepared(chosen))


def _prompt(content: Content, template: ChatTemplate | None, *, alone: bool) -> asked.Prompt | None:
    """What the row asks, without its tokens yet; None if it asks nothing.

    alone: whether the template writes the same for these messages wherever it is used.
    """
    if isinstance(content, Conversation):
        last = max(i for i in range(len(content.messages)) if content.learns(i))
        return _asking(content.part(range(last)), template, alone=alone) if last else None
    if isinstance(content, Answers | Steps):
        tools = content.tools if isinstance(content, Answers) else None
        args = content.template_args if isinstance(content, Answers) else {}
        return _asking(Conversation(list(content.context), tools, args), template, alone=alone)
    if isinstance(content, Prompt):
        asking = Conversation(list(content.messages), content.tools, content.template_args)
        return _asking(asking, template, alone=alone)
    if isinstance(content, Text | Labelled):
        return asked.Prompt(content.text[: len(content.text) // 2][:1000], ())
    if isinstance(content, Pieces):
        return asked.Prompt("".join(text for text, learned in content.pieces if not learned), ())
    return asked.Prompt(content.query, ()) if isinstance(content, Related) else None


def _asking(what: Conversation, template: ChatTemplate | None, *, alone: bool = False) -> asked.Prompt:
    """The text of a conversation with the generation prompt; without a template what it says."""
    if template is None:
        return asked.Prompt("\n".join(str(message["content"]) for message in what.messages), ())
    text = template.prompt_text(what.messages, what.tools, what.template_args)
    if not alone or what.template_args:
        return asked.Prompt(text, ())
    tools = tuple(what.tools) if what.tools else None
    return asked.Prompt(text, (), tuple(template.template_messages(what)), tools)


def _tokens(prompt: asked.Prompt, encoder: TokenEncoder) -> asked.Prompt | None:
    """The same with its tokens; None if it has none."""
    ids = tuple(encoder.encode(prompt.text).ids.tolist())
    return asked.Prompt(prompt.text, ids, prompt.messages, prompt.tools) if ids else None

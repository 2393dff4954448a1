"""A model as the judge of pairs: it reads each pair in both orders, and where the orders disagree it is a tie.

Models tend to prefer the answer that they read first (arXiv:2306.05685), so one order alone would measure that, too.
"""

import re
from collections.abc import Callable, Sequence

from luthier.data.chat import ChatTemplate
from luthier.errors import DataError, ModelError
from luthier.evaluate.pairwise import Ballot, Pair, Winner
from luthier.models.inference import Loaded
from luthier.rollout.native import NativeGenerator
from luthier.rollout.sampling import SamplingSettings

ASK = """Two assistants have answered the same request. Which answer is better: more correct, more helpful, and to the \
point? Length and the order of the answers do not matter.

[Request]
{question}

[An answer that is known to be good]
{reference}

[Answer A]
{a}

[Answer B]
{b}

Say which one is better with a single letter, A or B."""

_LETTER = re.compile(r"\b([AB])\b")
_PORTION = 32


def judge(
    loaded: Loaded, pairs: Sequence[Pair], ballot: Ballot, progress: Callable[[int, int], None] | None = None
) -> None:
    """Lets a model vote on pairs, likeliest words only. What it has voted on is kept portion by portion.

    Raises:
        ModelError: the model has no chat template.
        DataError: a pair is longer than its context.
    """
    if loaded.template is None:
        raise ModelError("the judge has no chat template, so it cannot be asked; choose an instruct model")
    generator = NativeGenerator(loaded.model, eos_token_ids=loaded.eos_token_ids, tokenizer=loaded.tokenizer)
    settings = SamplingSettings(max_new_tokens=8, temperature=0.0)
    for start in range(0, len(pairs), _PORTION):
        portion = pairs[start : start + _PORTION]
        orders = [order for pair in portion for order in (pair, pair.the_other_way())]
        prompts = [_prompt(order, loaded.template) for order in orders]
        _refuse_long(prompts, generator.max_positions)
        said = [found[0].text for found in generator.generate(prompts, settings)]
        for place, pair in enumerate(portion):
            texts = said[2 * place : 2 * place + 2]
            votes: list[Winner] = [
                order.winner(_letter(text)) for order, text in zip(orders[2 * place :], texts, strict=False)
            ]
            ballot.cast(pair, votes[0] if votes[0] == votes[1] else "tie", said=texts)
        if progress:
            progress(min(start + _PORTION, len(pairs)), len(pairs))


def _prompt(pair: Pair, template: ChatTemplate) -> list[int]:
    control = sorted(template.encoder.added, key=len, reverse=True)
    a, b = pair.shown
    parts = {"question": pair.question, "reference": pair.reference, "a": a, "b": b}
    text = ASK.format(**{name: _without(part, control).strip() for name, part in parts.items()})
    return template.prompt_ids([{"role": "user", "content": text}], None, template.thinking_switches(False))


def _refuse_long(prompts: Sequence[Sequence[int]], context: int | None) -> None:
    longest = max(map(len, prompts))
    if context is not None and longest >= context:
        raise DataError(
            f"a pair takes {longest} tokens, but the judge's context holds {context}; choose a judge with a longer "
            "context, or measure with fewer --answer-tokens"
        )


def _without(text: str, tokens: Sequence[str]) -> str:
    """A text without what would become control tokens of the judge."""
    for token in tokens:
        if not token.isspace():
            text = text.replace(token, "\n")
    return re.sub(r"\n{3,}", "\n\n", text)


def _letter(text: str) -> str:
    found = _LETTER.search(text)
    return found.group(1) if found else ""

"""Two models asked the same, and how far their answers lie apart.

The trained model goes first and is freed before the other is loaded; what it said is kept (`Said`). Both are then fed
the same tokens, the prompt's end and the trained model's own answer, and their distributions over the next token are
compared at each of these places. Besides, the other answers by itself.

Shape suffixes: T places, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from luthier.errors import RunError
from luthier.export.verify.engine import Engine
from luthier.export.verify.engines._torch import TorchModel
from luthier.export.verify.prompts import Prompt

PLACES = 64
"""At most so many of a prompt's last tokens are compared."""
ROUNDING = 2.0**-7
"""A choice is clear if the two likeliest tokens' logits differ by more than this part of the largest logit: two
roundings to bfloat16 of each."""


@dataclass(frozen=True)
class Said:
    """What the trained model said to a prompt."""

    prompt: Prompt
    answer: tuple[int, ...]
    logits_TV: Tensor
    """Behind the last tokens of the prompt and all but the last of the answer."""

    @property
    def fed(self) -> list[int]:
        """The prompt, and the answer without its last token."""
        return [*self.prompt.ids, *self.answer[:-1]]

    @property
    def clear_T(self) -> Tensor:
        """Whether the likeliest token is more than rounding ahead of the next."""
        top = self.logits_TV.topk(2).values
        return (top[:, 0] - top[:, 1]) > ROUNDING * self.logits_TV.abs().amax(dim=1)


@dataclass(frozen=True)
class Distance:
    """How far one model's answers lie from the other's, over all places of all prompts."""

    prompts: int
    places: int
    same_ids: int
    """Prompts whose text becomes the same tokens."""
    same_prompt: int | None
    """Prompts whose conversation becomes the same text by the template that came along; None: none was compared."""
    conversations: int
    mean_kl: float
    """Of KL(trained ‖ other), in nats."""
    largest_kl: float
    knows: float
    """Mean KL(trained ‖ uniform) in nats: all that the trained model knows."""
    top1: float
    """Share of places with the same likeliest token."""
    clear: int
    """Places where the trained model's choice is clear."""
    clear_agreed: int
    """Those of them with the same likeliest token."""
    largest_difference: float
    """Of any logit."""
    spread: float
    """Root mean square difference of the logits over the standard deviation of the trained model's, both around the
    mean of their place."""
    same_text: int
    """Prompts with the same greedy answer."""
    ties: int
    """Prompts whose answers part where the trained model's choice is not clear."""
    answer_tokens: int
    first_difference: str = ""
    """The first prompt whose tokens, text or answer differ, in words."""

    @property
    def clear_top1(self) -> float:
        """Share of clear places with the same likeliest token; 1 if there is none."""
        return self.clear_agreed / self.clear if self.clear else 1.0


def ask(model: TorchModel, prompts: Sequence[Prompt], most: int, ends: Collection[int]) -> list[Said]:
    """What the trained model says to each prompt, with answers of at most `most` tokens up to one of `ends`."""
    found = []
    for prompt in prompts:
        answer, logits_TV = model.answer(prompt.ids, most, ends, PLACES)
        found.append(Said(prompt, tuple(answer), logits_TV))
        if not bool(found[-1].logits_TV.isfinite().all()):
            raise RunError("the trained model's logits are not finite, so nothing can be compared with them.")
    return found


def distance(said: Sequence[Said], engine: Engine, most: int, ends: Collection[int]) -> Distance:
    """Asks the other model the same."""
    totals = _Totals()
    for one in said:
        totals.add_places(one, engine.logits(one.fed, len(one.logits_TV)))
        totals.add_words(one, engine)
        totals.add_answer(one, engine.greedy(one.prompt.ids, most, ends))
    return totals.distance(len(said), sum(len(one.answer) for one in said))


def apart(said: Sequence[Said], logits: Sequence[Tensor]) -> Distance:
    """How far distributions at the same places lie from what was said: for each prompt [T, V]. Tokens, texts and
    answers are not compared."""
    totals = _Totals()
    for one, other_TV in zip(said, logits, strict=True):
        totals.add_places(one, other_TV)
    return replace(totals.distance(len(said), 0), same_ids=len(said))


def divergence(trained_TV: Tensor, other_TV: Tensor) -> Tensor:
    """KL(trained ‖ other) at each place, in nats: [T]."""
    log_p, log_q = trained_TV.double().log_softmax(-1), other_TV.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class _Totals:
    """Sums over prompts, to be made a `Distance`."""

    def __init__(self) -> None:
        self.kl: list[Tensor] = []
        self.places = self.agreed = self.clear = self.clear_agreed = 0
        self.knows = self.squares = self.own_squares = self.largest = 0.0
        self.same_ids = self.same_prompt = self.conversations = self.same_text = self.ties = 0
        self.first = ""

    def add_places(self, said: Said, other_TV: Tensor) -> None:
        """The distributions at each place."""
        trained_TV, size = said.logits_TV, min(said.logits_TV.shape[1], other_TV.shape[1])
        trained_TV, other_TV = trained_TV[:, :size], other_TV[:, :size]
        log_p = trained_TV.double().log_softmax(-1)
        self.kl.append(divergence(trained_TV, other_TV))
        self.knows += float((log_p.exp() * log_p).sum(-1).sum()) + len(log_p) * float(
            torch.tensor(size).log()
        )
        agrees = trained_TV.argmax(-1) == other_TV.argmax(-1)
        clear = said.clear_T
        self.places += len(agrees)
        self.agreed += int(agrees.sum())
        self.clear += int(clear.sum())
        self.clear_agreed += int((agrees & clear).sum())
        off = other_TV - trained_TV
        self.largest = max(self.largest, float(off.abs().max()))
        self.squares += float((off - off.mean(-1, keepdim=True)).double().square().sum())
        self.own_squares += float((trained_TV - trained_TV.mean(-1, keepdim=True)).double().square().sum())

    def add_words(self, said: Said, engine: Engine) -> None:
        """Tokens of the text, and the text of the conversation."""
        prompt = said.prompt
        ids = engine.ids(prompt.text)
        self.same_ids += ids == list(prompt.ids)
        if ids != list(prompt.ids):
            self._note(_parted("tokens", list(prompt.ids), ids, prompt.text))
        if prompt.messages is None:
            return
        text = engine.render(prompt.messages, prompt.tools)
        self.conversations += text is not None
        self.same_prompt += text == prompt.text
        if text is not None and text != prompt.text:
            self._note(
                f"the template writes {text[-200:]!r} where the trained model reads {prompt.text[-200:]!r}"
            )

    def add_answer(self, said: Said, answer: Sequence[int]) -> None:
        """The answer that the other model gives by itself."""
        if list(answer) == list(said.answer):
            self.same_text += 1
            return
        pairs = enumerate(zip(said.answer, answer, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(answer), len(said.answer)))
        behind = len(said.answer) - place
        if behind and not bool(said.clear_T[-behind]):
            self.ties += 1
        self._note(_parted("answers", said.answer, answer, said.prompt.text))

    def _note(self, text: str) -> None:
        self.first = self.first or text

    def distance(self, prompts: int, answer_tokens: int) -> Distance:
        """Over all that was added."""
        kl = torch.cat(self.kl)
        return Distance(
            prompts=prompts,
            places=self.places,
            same_ids=self.same_ids,
            same_prompt=self.same_prompt if self.conversations else None,
            conversations=self.conversations,
            mean_kl=float(kl.mean()),
            largest_kl=float(kl.max()),
            knows=self.knows / self.places,
            top1=self.agreed / self.places,
            clear=self.clear,
            clear_agreed=self.clear_agreed,
            largest_difference=self.largest,
            spread=(self.squares / self.own_squares) ** 0.5 if self.own_squares else 0.0,
            same_text=self.same_text,
            ties=self.ties,
            answer_tokens=answer_tokens,
            first_difference=self.first,
        )


def _parted(what: str, right: Sequence[int], found: Sequence[int], text: str) -> str:
    place = next(
        (i for i, (a, b) in enumerate(zip(right, found, strict=False)) if a != b), min(len(right), len(found))
    )
    return (
        f"{what} part at token {place + 1}: {list(right[place : place + 6])} of the trained model, "
        f"{list(found[place : place + 6])} of the other, for a prompt that ends with {text[-60:]!r}"
    )

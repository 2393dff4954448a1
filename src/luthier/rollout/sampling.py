"""How the next token is drawn from a model's logits.

Sampling inverts the cumulative distribution: one uniform number a token picks the token. The numbers of a row
come from a generator of its own, seeded by (seed, prompt, sample) alone, so an answer does not depend on what
else is in the batch, on the batch's size or on the device.

Shape suffixes: B rows, N tokens to generate, V vocabulary, K most likely tokens.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.errors import ConfigError

FIRST_CANDIDATES = 256
"""How many of the most likely tokens `top_p` looks at before it looks at all of them."""

SPAN = 256
"""How many tokens a draw from the whole vocabulary first takes together."""


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are generated. The default is greedy: the most likely token each time."""

    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.0
    """Logits are divided by this before sampling; 0 takes the most likely token."""
    top_k: int | None = None
    """Sample from this many of the most likely tokens."""
    top_p: float = 1.0
    """Sample from the fewest most likely tokens that together have this probability, after `top_k`."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these texts."""
    seed: int = 0
    """Fixes the random numbers."""
    num_samples: int = 1
    """Answers to each prompt."""

    def __post_init__(self) -> None:
        faults = self._faults()
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> list[str]:
        faults = []
        if self.max_new_tokens < 1:
            faults.append(f"max_new_tokens is {self.max_new_tokens}; an answer needs at least 1")
        if not math.isfinite(self.temperature) or self.temperature < 0 or 0 < self.temperature < 1e-6:
            faults.append(
                f"temperature is {self.temperature}; give 0 for greedy, or a finite number from 1e-6 up"
            )
        if self.top_k is not None and self.top_k < 1:
            faults.append(f"top_k is {self.top_k}; give at least 1, or leave it out to keep every token")
        if not 0 < self.top_p <= 1:
            faults.append(f"top_p is {self.top_p}; it is a probability above 0 and at most 1")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            faults.append(f"stop is {self.stop!r}; give a tuple of texts that are not empty")
        if self.seed < 0:
            faults.append(f"seed is {self.seed}; give 0 or more")
        if self.num_samples < 1:
            faults.append(f"num_samples is {self.num_samples}; give at least 1")
        elif self.num_samples > 1 and self.temperature == 0:
            faults.append(
                f"num_samples is {self.num_samples}, but at temperature 0 all answers to a prompt are the "
                "same; raise temperature or set num_samples to 1"
            )
        return faults


def row_uniforms(settings: SamplingSettings, prompt: int, sample: int) -> Tensor:
    """The random numbers of one answer, one a token: [N] in [0, 1), float64, on the CPU."""
    generator = torch.Generator().manual_seed(row_seed(settings, prompt, sample))
    uniform_N = torch.rand(settings.max_new_tokens, generator=generator, dtype=torch.float64)
    # A number within rounding of 1 would pick a token past the end of the distribution.
    return uniform_N.clamp_(max=1 - 2.0**-40)


def row_seed(settings: SamplingSettings, prompt: int, sample: int) -> int:
    """The seed of one answer's own random numbers, of 64 bits with a sign."""
    key = f"{settings.seed}/{prompt}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True)


def choose(logits_BV: Tensor, uniform_B: Tensor | None, settings: SamplingSettings) -> Tensor:
    """The next token of each row: [B]. `uniform_B` may be absent only at temperature 0.

    `top_k` goes first, then `top_p` on what it left (Holtzman et al., 2020, arXiv:1904.09751); the token that
    reaches `top_p` is still in.
    """
    if settings.temperature == 0:
        return logits_BV.argmax(dim=-1)
    assert uniform_B is not None
    if settings.top_k is None and settings.top_p == 1:
        return _invert(_weights(logits_BV, settings.temperature), uniform_B)
    kept_BK, token_BK = _most_likely(logits_BV, settings)
    return token_BK.gather(1, _invert(kept_BK, uniform_B)[:, None]).squeeze(1)


def _weights(logits_BV: Tensor, temperature: float) -> Tensor:
    """Probabilities at this temperature."""
    if temperature != 1:
        # The largest logit goes to 0 first, so that a small temperature cannot overflow.
        logits_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)).div_(temperature)
    return logits_BV.softmax(dim=-1)


def log_probability(logits_BV: Tensor, token_B: Tensor) -> Tensor:
    """What the model itself gives each token, at temperature 1 over the whole vocabulary: ln p, [B]."""
    logits_BV = logits_BV.float()
    return logits_BV.gather(1, token_B[:, None]).squeeze(1) - logits_BV.logsumexp(dim=-1)


def _invert(weight_BK: Tensor, uniform_B: Tensor) -> Tensor:
    """The index at which the running sum of the weights first exceeds the given share of their total.

    In two steps where there are many weights: the running sum of whole spans finds one span, that of its weights
    the place in it. So only the spans' sums and one span's weights are summed one by one, in double precision.
    """
    num_rows, num_weights = weight_BK.shape
    if num_weights <= 2 * SPAN:
        return _place(weight_BK, uniform_B)[0]
    padded_BK = F.pad(weight_BK, (0, -num_weights % SPAN))
    spans_BSK = padded_BK.view(num_rows, -1, SPAN)
    span_B, share_B = _place(spans_BSK.sum(-1), uniform_B)
    inner_B, _ = _place(spans_BSK[torch.arange(num_rows, device=span_B.device), span_B], share_B)
    return (span_B * SPAN + inner_B).clamp_(
        max=num_weights - 1
    )  # weights that are no numbers lead past the end


def _place(weight_BK: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The index, and how far into its weight the aim falls, as a share of it in [0, 1)."""
    sum_BK = weight_BK.cumsum(dim=-1, dtype=torch.float64)
    aim_B1 = uniform_B[:, None] * sum_BK[:, -1:]
    index_B1 = torch.searchsorted(sum_BK, aim_B1, right=True).clamp_(max=weight_BK.shape[1] - 1)
    before_B1 = F.pad(sum_BK, (1, 0)).gather(1, index_B1)
    own_B1 = sum_BK.gather(1, index_B1) - before_B1
    share_B1 = ((aim_B1 - before_B1) / own_B1).clamp_(0, 1 - 2.0**-40)
    return index_B1.squeeze(1), share_B1.squeeze(1)


def _most_likely(logits_BV: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Weights and ids of the tokens that `top_k` and `top_p` keep, likeliest first; others weigh 0."""
    num_tokens = logits_BV.shape[1]
    if settings.top_k is not None:
        top_BK, token_BK = logits_BV.topk(min(settings.top_k, num_tokens), dim=-1)
        return _nucleus(_weights(top_BK, settings.temperature), settings.top_p), token_BK
    probability_BV = _weights(logits_BV, settings.temperature)
    num = min(FIRST_CANDIDATES, num_tokens)
    while True:
        # Sorting the whole vocabulary costs more than a small model's step, and is seldom needed.
        top_BK, token_BK = probability_BV.topk(num, dim=-1)
        if num == num_tokens or bool((top_BK.sum(dim=-1) >= settings.top_p).all()):
            return _nucleus(top_BK, settings.top_p), token_BK
        num = min(8 * num, num_tokens)


def _nucleus(probability_BK: Tensor, top_p: float) -> Tensor:
    before_BK = probability_BK.cumsum(dim=-1, dtype=torch.float64) - probability_BK
    return probability_BK.masked_fill(before_BK >= top_p, 0)

"""A loaded model in a few methods: answer, stream, score. What `luthier.load` returns."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from luthier.data.batch import Example, Segment, collate
from luthier.data.chat import ChatTemplate
from luthier.errors import ModelError
from luthier.models.inference import Loaded
from luthier.models.policy import Policy
from luthier.models.tripwire import choose_policy
from luthier.rollout.native import Completion, NativeGenerator
from luthier.rollout.sampling import SamplingSettings

Messages = str | Sequence[Mapping[str, Any]]


class Assistant:
    """A model to talk to. A text stands for one message of the user."""

    def __init__(self, loaded: Loaded):
        self.model, self.tokenizer, self.template = loaded.model, loaded.tokenizer, loaded.template
        self.generator = NativeGenerator(
            loaded.model, eos_token_ids=loaded.eos_token_ids, tokenizer=loaded.tokenizer
        )

    def answer(self, messages: Messages, **settings: Any) -> str:
        """The answer to a conversation. Settings are those of `SamplingSettings`; without any it is greedy."""
        return self.complete([self.prompt_ids(messages)], **settings)[0][0].text

    def answers(self, conversations: Sequence[Messages], **settings: Any) -> list[str]:
        """One answer to each conversation, computed together."""
        prompts = [self.prompt_ids(messages) for messages in conversations]
        return [completions[0].text for completions in self.complete(prompts, **settings)]

    def stream(self, messages: Messages, **settings: Any) -> Iterator[str]:
        """The answer to a conversation piece by piece, while it is generated."""
        return self.generator.stream(self.prompt_ids(messages), SamplingSettings(**settings))

    def complete(self, prompts: Sequence[Sequence[int]], **settings: Any) -> list[list[Completion]]:
        """Completions of token ids with their log-probabilities: [prompt][sample]."""
        return self.generator.generate(prompts, SamplingSettings(**settings))

    def prompt_ids(self, messages: Messages) -> list[int]:
        """The conversation as the model was trained to see it, up to where its answer begins."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self._template().prompt_ids([dict(message) for message in messages])

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Log-probability of each token of an answer to a prompt, by the path that training takes."""
        ids = np.array([*prompt, *answer], dtype=np.int32)
        weights = (np.arange(len(ids)) >= len(prompt)).astype(np.float32)
        batch = collate([Example((Segment(ids, weights),))]).to(self.model.device)
        with torch.no_grad():
            return self._policy(batch).tolist()

    @cached_property
    def _policy(self) -> Policy:
        return choose_policy(self.model).policy

    def _template(self) -> ChatTemplate:
        if self.template is None:
            raise ModelError(
                "this model has no chat template, so it cannot take messages. Give token ids to `complete`, "
                "or load an instruction-tuned model."
            )
        return self.template

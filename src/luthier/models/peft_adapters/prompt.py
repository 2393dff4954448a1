"""What is learned to stand before every document: embeddings, or keys and values of each layer.

It is put before the tokens where they enter the model's layers, so that whoever calls these need not know of it: the
policy with a stream of many documents, transformers' own forward, and generation with a cache. In a stream what
stands before becomes the root of the forest, so that all documents continue it and it is computed once.

Shape suffixes: B rows, P tokens of the prompt, T tokens of the input, L with those in the cache, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from luthier.kernels.attention import Forest
from luthier.models.states_first import StatesFirst

States = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [1, K, P, head size] each."""


class Prompt:
    """Lets something learned stand before the tokens of one backbone.

    Args:
        backbone: the model's layers; two hooks are put on it.
        embed: the model's embedding of tokens.
        make: what stands before: embeddings [P, D], or keys and values of each layer.
        length: P.
    """

    def __init__(
        self, backbone: nn.Module, embed: nn.Module, make: Callable[[], Tensor | States], length: int
    ):
        self.backbone, self.embed, self.make, self.length = backbone, embed, make, length
        self.enabled = True
        self.gives_states = not isinstance(make(), Tensor)
        self._added = 0
        self._hooks = [
            backbone.register_forward_pre_hook(self._before, with_kwargs=True),
            backbone.register_forward_hook(self._after),
        ]

    def remove(self) -> None:
        """Takes the hooks off again."""
        for hook in self._hooks:
            hook.remove()

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        self._added = 0
        if not self.enabled:
            return None
        given = dict(given)
        if args:
            (given["input_ids"],) = args
        cache = given.get("past_key_values")
        read = cache.get_seq_length() if cache is not None else 0
        if (mask_BL := given.get("attention_mask")) is not None:
            given["attention_mask"] = torch.cat([mask_BL.new_ones(len(mask_BL), self.length), mask_BL], 1)
        if (position_BT := given.get("position_ids")) is not None:
            given["position_ids"] = position_BT + self.length
        if read:
            return (), given
        made = self.make()
        if isinstance(made, Tensor):
            self._put_embeddings(made, given)
        else:
            self._put_states(made, given)
        return (), given

    def _put_embeddings(self, prompt_PD: Tensor, given: dict[str, Any]) -> None:
        tokens = given.pop("input_ids", None)
        embedded_BTD = given["inputs_embeds"] if tokens is None else self.embed(tokens)
        before_BPD = prompt_PD.to(embedded_BTD.dtype).expand(len(embedded_BTD), -1, -1)
        given["inputs_embeds"] = torch.cat([before_BPD, embedded_BTD], 1)
        if (position_BT := given.get("position_ids")) is not None:
            place_P = torch.arange(self.length, device=position_BT.device).expand(len(position_BT), -1)
            given["position_ids"] = torch.cat([place_P, position_BT], 1)
        if (forest := given.get("forest")) is not None:
            given["forest"] = Forest(*_rooted(forest, self.length), windows=forest.windows)
        self._added = self.length

    def _put_states(self, states: States, given: dict[str, Any]) -> None:
        tokens = given.get("input_ids")
        tokens = given["inputs_embeds"] if tokens is None else tokens
        if (forest := given.get("forest")) is not None:
            if given.get("position_ids") is None:
                given["position_ids"] = (
                    torch.arange(tokens.shape[1], device=tokens.device)[None] + self.length
                )
            places = _rooted(forest, self.length)
            given["forest"] = StatesFirst(*places, windows=forest.windows, states=tuple(states))
            return
        cache = DynamicCache(config=self.backbone.config)  # pyright: ignore[reportArgumentType]
        for layer, (keys, values) in enumerate(states):
            cache.update(keys.expand(len(tokens), -1, -1, -1), values.expand(len(tokens), -1, -1, -1), layer)
        given["past_key_values"] = cache

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._added:
            output.last_hidden_state = output.last_hidden_state[:, self._added :]
        return output


def _rooted(forest: Forest, length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Starts and parents of the forest with a root of so many tokens before all of it."""
    starts = (0, *(start + length for start in forest.starts))
    return starts, (-1, *(parent + 1 for parent in forest.parents))

"""Which trained weights the settings mean: groups by name, and the rows of new tokens."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.config.optim_section import GroupSection
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.lora_targets import input_embeddings, output_embeddings
from luthier.models.new_tokens import token_weights
from luthier.models.token_rows import TokenRows
from luthier.optim.groups import Rule
from luthier.optim.pieces import About
from luthier.training.loop import Trainer


def rules_of(config: Config, trained: Sequence[tuple[str, nn.Parameter]], model: nn.Module) -> list[Rule]:
    """The groups of weights with settings of their own: `optim.groups`, then B of adapters with `lora.plus_ratio`."""
    rules = rules_of_groups(config.optim.groups, trained, model)
    if config.lora is not None and config.lora.plus_ratio is not None:
        chosen = frozenset(id(p) for name, p in trained if re.search(r"\.lora_(embedding_)?B(\.|$)", name))
        rules.append(Rule(chosen, config.learning_rate * config.lora.plus_ratio))
    return rules


def rules_of_groups(
    sections: Sequence[GroupSection], trained: Sequence[tuple[str, nn.Parameter]], model: nn.Module
) -> list[Rule]:
    """The weights that each of `optim.groups` means.

    `embeddings` and `head` mean those of any model (where they are one, both words mean it); everything else is a
    regular expression that is found in the name of a weight.

    Raises:
        ConfigError: one of them means none of the weights that are trained.
    """
    words = {"embeddings": _weights(input_embeddings(model)), "head": _weights(output_embeddings(model))}
    rules = []
    for number, section in enumerate(sections):
        chosen: set[int] = set()
        for pattern in section.match:
            found = {id(p) for name, p in trained if re.search(pattern, name)}
            if pattern in words:
                found = words[pattern] & {id(p) for _, p in trained}
            if not found:
                some = ", ".join(name for name, _ in trained[:3])
                raise ConfigError(
                    f"optim.groups[{number}].match has {pattern!r}, which is in the name of no weight that is "
                    f"trained. It may be embeddings, head, or a part of a name such as {some}"
                )
            chosen |= found
        rules.append(Rule(frozenset(chosen), section.lr, section.weight_decay))
    return rules


def about_weights(trained: Sequence[tuple[str, nn.Parameter]], model: PreTrainedModel) -> dict[int, About]:
    """What optimizers may know of each trained weight, by `id`."""
    tables = _weights(input_embeddings(model)) | _weights(output_embeddings(model))
    shape = model.config.get_text_config()
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    known = {}
    for number, (name, parameter) in enumerate(trained):
        heads = re.search(r"(^|\.)[qk]_proj\.weight$", name) and parameter.shape[0] % head == 0
        known[id(parameter)] = About(name, number, id(parameter) in tables, head if heads else 0)
    return known


class NewRowsFirst:
    """In the first steps only the rows of new tokens move: all other gradients are forgotten before each update.

    Weight decay rests in these steps, so that nothing else changes at all.

    Args:
        trainer: whose steps.
        tokens: ids of the new tokens.
        steps: how many steps.
    """

    def __init__(self, trainer: Trainer, tokens: Sequence[int], steps: int):
        self.trainer, self.steps = trainer, steps
        self._decays = [group["weight_decay"] for group in trainer.optimizer.param_groups]
        model: PreTrainedModel = trainer.policy.model
        self._rows: dict[int, Tensor | None] = {  # None: all of them
            id(module.rows): None for module in model.modules() if isinstance(module, TokenRows)
        }
        if not self._rows:
            ids = torch.tensor(sorted(tokens), device=trainer.device)
            self._rows = {id(weight): ids for weight in token_weights(model).values()}

    def __call__(self) -> None:
        """Forgets the gradients of this step that should not count."""
        first = self.trainer.progress.step < self.steps
        for group, decay in zip(self.trainer.optimizer.param_groups, self._decays, strict=True):
            group["weight_decay"] = 0.0 if first else decay
        if not first:
            return
        for home in self.trainer.gradients.homes:
            home.gradients_n.zero_()
        for parameter in self.trainer.gradients.loose:
            if parameter.grad is not None:
                self._keep(parameter)

    def _keep(self, parameter: nn.Parameter) -> None:
        gradient = parameter.grad
        assert gradient is not None, "only what has a gradient"
        if id(parameter) not in self._rows:
            if self.trainer.gradients.keep:
                gradient.zero_()
            else:
                parameter.grad = None
            return
        ids = self._rows[id(parameter)]
        if ids is not None:
            kept = gradient[ids].clone()
            gradient.zero_()
            gradient[ids] = kept


def _weights(module: nn.Module | None) -> set[int]:
    return set() if module is None else {id(parameter) for parameter in module.parameters()}

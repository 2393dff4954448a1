"""Which of the model's own weights a run tunes, as the section `tune` says."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

import luthier.models.tuning
from luthier.config.tree import Config
from luthier.config.tune_section import TuneSection
from luthier.errors import ConfigError
from luthier.models.tuning._parts import Chosen, Weights
from luthier.models.tuning.base import Say, Way
from luthier.training.updates import plugin


def build_way(config: Config) -> Way | None:
    """How the weights are chosen; None where all are tuned, or an adapter is.

    Raises:
        ConfigError: settings that cannot work together.
    """
    if config.tune is None:
        return None
    return plugin(luthier.models.tuning, config.tune.name, config.tune.options)


def new_layers(config: Config) -> int:
    """How many layers the model gets that it did not have."""
    return config.tune.options.get("blocks", 0) if config.tune is not None else 0


def open_weights(config: Config, model: PreTrainedModel, besides: Sequence[str], say: Say) -> str:
    """Opens the weights that are tuned, at least now and then, and closes all others; returns what to say of it.

    Args:
        besides: modules that are new and tuned in any case, such as a head of scores.

    Raises:
        ConfigError: a setting means no weight, or nothing would be tuned.
    """
    way, section = build_way(config), config.tune
    assert way is not None and section is not None, "only with the section tune"
    chosen = chosen_weights(section, way, model, besides, say)
    if not chosen:
        raise ConfigError("tune chooses no weight at all. Name some in tune.train, or leave out tune.freeze")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    _check_new_tokens(config, model)
    return f"partial fine-tuning: {way.describe()}"


def chosen_weights(
    section: TuneSection, way: Way, model: PreTrainedModel, besides: Sequence[str], say: Say
) -> Chosen:
    """What the way chooses, what is named, kinds that are switched on or off, and nothing that is frozen by name."""
    weights = Weights(model)
    chosen = way.choose(weights, bool(section.train), say)
    for name in besides:
        chosen |= frozenset(map(id, model.get_submodule(name).parameters()))
    for pattern in section.train:
        chosen |= weights.named(pattern, "tune.train")
    both = {section.embeddings, section.head}
    if weights.embeddings & weights.head and both == {True, False}:
        raise ConfigError(_tied(section))
    for wanted, kind in (
        (section.embeddings, weights.embeddings),
        (section.head, weights.head),
        (section.norms, weights.norms),
    ):
        chosen = chosen if wanted is None else chosen | kind if wanted else chosen - kind
    for pattern in section.freeze:
        chosen -= weights.named(pattern, "tune.freeze")
    return chosen


def _tied(section: TuneSection) -> str:
    return (
        f"tune.embeddings is {str(section.embeddings).lower()} and tune.head is {str(section.head).lower()}, but the "
        "embeddings of this model are the weights of its head, too. Leave out one of the two"
    )


def _check_new_tokens(config: Config, model: PreTrainedModel) -> None:
    """New tokens whose rows would stay means of others are told, unless that is asked for."""
    table = model.get_input_embeddings()
    assert isinstance(table, nn.Module)
    learned = any(p.requires_grad for p in table.parameters())
    if config.model.new_tokens and config.model.train_new_tokens and not learned:
        raise ConfigError(
            "model.new_tokens adds tokens, but tune leaves the embeddings as they are, so nothing would be learned of "
            "them. Set tune.embeddings: true, or model.train_new_tokens: false"
        )

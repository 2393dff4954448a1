"""A second model beside the one that is trained: a teacher, or a reference of its own. Loaded here and nowhere else."""

from typing import Protocol

from luthier.config.tree import Config
from luthier.models.device import pick_dtype
from luthier.models.fused.check import fuse_checked
from luthier.models.load import load_model, load_tokenizer, resolve_model
from luthier.models.new_tokens import add_tokens, place_tokens
from luthier.models.policy import Policy
from luthier.models.tripwire import choose_policy


class Named(Protocol):
    """What a section of the config says of the model."""

    @property
    def revision(self) -> str | None:
        """Commit, branch or tag of a hub id."""
        ...

    @property
    def dtype(self) -> str:
        """Precision of its weights; `auto`: that of the model that is trained."""
        ...


def load_second(
    config: Config, beside: Policy, key: str, name: str, section: Named, *, grown: bool
) -> tuple[Policy, list[str]]:
    """The model where `beside` is, in the fastest form that gives its own numbers, and notes on it.

    Args:
        key: the section of the config, for messages: `teacher` or `reference`.
        name: which model.
        grown: gives it rows for `model.new_tokens` too, and packs it as `model.packing` says, since it is to be
            compared with `beside` itself.

    Raises:
        LuthierError: it cannot be loaded, or not in this precision.
    """
    device, model = next(beside.parameters()).device, config.model
    auto = section.dtype == "auto"
    dtype = beside.model.dtype if auto else pick_dtype(section.dtype, device, f"{key}.dtype")
    other = load_model(resolve_model(name, revision=section.revision, offline=config.offline), dtype, device)
    if grown and model.new_tokens:
        tokenizer = load_tokenizer(name, revision=section.revision, offline=config.offline)
        place_tokens(other, add_tokens(tokenizer, model.new_tokens))
    choice = choose_policy(other, model.packing if grown else None, config.max_length)
    notes = [f"{key}: {reason}; taking {choice.policy.layout}" for reason in choice.reasons]
    if model.fused:
        notes.append(f"{key}: {fuse_checked(choice.policy)[1]}")
    return choice.policy.requires_grad_(False).eval(), notes

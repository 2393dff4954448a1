"""Which reference a run compares with, as its config says."""

from contextlib import nullcontext
from dataclasses import replace

from luthier.config.reference_section import ReferenceSection
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.methods.base import Method
from luthier.models.load import load_tokenizer
from luthier.models.peft_adapters.held import peft_of, without_peft
from luthier.models.policy import Policy
from luthier.models.reference import Known, OtherModel, OwnStart, Reference, Synchronised, WithoutPrompt
from luthier.parallel.cluster import Cluster
from luthier.places import cache_folder
from luthier.training.asked import ReferenceLogprobs
from luthier.training.known_values import KnownValues
from luthier.training.rows import Data, Say
from luthier.training.second_model import load_second

LARGE_BYTES = 1 << 28
"""A copy of the weights that takes more than that is told."""


def check_reference(config: Config, method: Method) -> None:
    """Refuses a reference for a method that compares with none.

    Raises:
        ConfigError: with the first key that is in vain.
    """
    if method.needs_reference or config.reference == ReferenceSection():
        return
    key = next(iter(config.reference.model_dump(exclude_defaults=True)))
    raise ConfigError(
        f"reference.{key} is set, but method {config.method.name} compares with no reference; remove it, or choose a "
        "method that does, such as dpo or kto"
    )


def build_reference(
    config: Config, policy: Policy, method: Method, data: Data, *, often: bool, cluster: Cluster, say: Say
) -> tuple[Reference | None, Data, list[str]]:
    """What the method compares with, the rows, and what a person should know about it. Before the first update.

    Rows whose reference is made beforehand bring it along.

    Args:
        data: the rows as the method wants them.
        often: whether rows are seen more than once.
        say: told at once what happens, as it may take long.

    Raises:
        LuthierError: another model was named that cannot be loaded, or that reads other tokens.
    """
    if not method.needs_reference:
        return None, data, []
    name, cached, notes = config.reference.name, _cached(config, data, often), []
    if config.reference.precompute and data.stream is not None:
        notes.append("the reference is not computed beforehand: rows of a stream are new in each step")
    if not cached:
        reference, more = _live(config, policy)
        return reference, data, notes + more
    other = None
    if name is not None:
        other, notes = _other_model(config, name, policy)
    asked = ReferenceLogprobs(other.policy if other is not None else policy)
    make = KnownValues(asked, cluster, say, cache_folder("reference"))
    with without_peft(policy.model) if _is_prompted(policy) else nullcontext():
        held_out = make(data.held_out) if data.held_out is not None else None
        train = make(data.train)
    return Known(), replace(data, train=train, held_out=held_out), notes


def _is_prompted(policy: Policy) -> bool:
    """Whether the policy learns what stands before the tokens; a reference then goes without."""
    adapter = peft_of(policy.model)
    return adapter is not None and adapter.prompt is not None


def _cached(config: Config, data: Data, often: bool) -> bool:
    """Whether the reference is made beforehand."""
    if data.stream is not None or config.reference.sync_every is not None:
        return False
    wanted = config.reference.precompute
    return (often and config.data.cache) if wanted is None else wanted


def _live(config: Config, policy: Policy) -> tuple[Reference, list[str]]:
    """A reference that is asked in every step."""
    section = config.reference
    if section.name is not None:
        other, notes = _other_model(config, section.name, policy)
        return other, [notes[0] + _memory(other), *notes[1:]]
    if _is_prompted(policy):
        if section.sync_every is not None:
            raise ConfigError(
                "reference.sync_every moves the reference to the model, and with a learned prompt (section peft) it is "
                "the model without that prompt; leave out reference.sync_every"
            )
        return WithoutPrompt(policy), ["the reference is the model without the learned prompt"]
    if section.sync_every is not None:
        alpha = section.sync_alpha or (1.0 if config.has_adapter else 0.6)
        moving = Synchronised(policy, section.sync_every, alpha)
        told = f"the reference moves to the model every {section.sync_every} steps"
        return moving, [f"{told}, by {alpha:g} of the way{_memory(moving)}"]
    own = OwnStart(policy)
    if own.num_bytes < LARGE_BYTES:
        return own, []
    return own, [
        f"the reference is a copy of the trained weights{_memory(own)}. It takes none with reference.precompute: true, "
        "which computes once what the reference says of the rows, or with an adapter (section lora)"
    ]


def _memory(reference: Reference) -> str:
    return f", for {reference.num_bytes / 2**30:.1f} GiB of memory"


def _other_model(config: Config, name: str, policy: Policy) -> tuple[OtherModel, list[str]]:
    """The model that `reference.name` names."""
    _check_same_tokens(config, name)
    other, notes = load_second(config, policy, "reference", name, config.reference, grown=True)
    return OtherModel(other), [f"the reference is {name} in {str(other.model.dtype).split('.')[1]}", *notes]


def _check_same_tokens(config: Config, name: str) -> None:
    """Refuses a model whose tokens mean something else: log-probabilities of the same ids could not be compared."""
    words = {}
    for key, one, revision in (
        ("model.name", config.model.name, config.model.revision),
        ("reference.name", name, config.reference.revision),
    ):
        tokenizer = load_tokenizer(
            one, revision=revision, offline=config.offline, new_tokens=config.model.new_tokens
        )
        words[key] = {number: word for word, number in tokenizer.get_vocab().items()}
    own, other = words["model.name"], words["reference.name"]
    differing = sorted(number for number in {*own, *other} if own.get(number) != other.get(number))
    if not differing:
        return
    first = differing[0]
    raise ConfigError(
        f"reference.name {name} has other tokens than model.name {config.model.name}: {len(differing)} ids differ, "
        f"the first is {first} ({other.get(first)!r} there, {own.get(first)!r} here), so what the two say of a row "
        "cannot be compared. Name a model with the same tokenizer, such as another one of the same family."
    )

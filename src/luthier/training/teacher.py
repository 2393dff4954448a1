"""The teacher of a run: whether it can teach this model, and loading it."""

from transformers import PreTrainedTokenizerFast

from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.methods.base import Method
from luthier.models.device import pick_dtype
from luthier.models.fused.check import fuse_checked
from luthier.models.load import load_model, load_tokenizer, resolve_model
from luthier.models.policy import Policy
from luthier.models.teacher import Teacher
from luthier.models.tripwire import choose_policy


def check_teacher(config: Config, method: Method) -> None:
    """Refuses a method without the teacher that it needs, and a teacher that nothing is learned from.

    Raises:
        ConfigError: says what to change.
    """
    needed = method.teacher_divergence is not None
    if needed and config.teacher is None:
        raise ConfigError(
            f"method {config.method.name} learns from a teacher, and the config names none; add teacher: NAME, a "
            "larger model with the vocabulary of model.name"
        )
    if config.teacher is not None and not needed:
        raise ConfigError(
            f"teacher is {config.teacher.name}, but method {config.method.name} learns from no teacher; remove "
            "teacher, or set method: distill"
        )


def check_vocabulary(config: Config, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuses a teacher for whom the student's token ids are not the same tokens.

    Raises:
        ConfigError: names both sizes and the first difference.
    """
    if config.teacher is None:
        return
    name, revision = config.teacher.name, config.teacher.revision
    theirs = load_tokenizer(name, revision=revision, offline=config.offline).get_vocab()
    ours = tokenizer.get_vocab()
    unlike = sorted((i, token) for token, i in ours.items() if theirs.get(token) != i)
    if not unlike:
        return
    index, token = unlike[0]
    other = f"has it as {theirs[token]}" if token in theirs else "does not have it"
    new = ""
    if config.model.new_tokens and all(token in config.model.new_tokens for _, token in unlike):
        new = " or leave out model.new_tokens,"
    raise ConfigError(
        f"teacher {name} has another vocabulary than model {config.model.name}: {len(theirs):,} tokens against "
        f"{len(ours):,}, and {len(unlike):,} of the latter are not the same (the first: token {index}, {token!r}; "
        f"the teacher {other}). Predictions can be compared only token by token:{new} take a teacher of the same "
        "family."
    )


def build_teacher(config: Config, policy: Policy) -> tuple[Teacher | None, list[str]]:
    """The teacher where the policy is, in the fastest form that gives its own numbers, and notes on it.

    None where the config has none.
    """
    section = config.teacher
    if section is None:
        return None, []
    device, auto = next(policy.parameters()).device, section.dtype == "auto"
    dtype = policy.model.dtype if auto else pick_dtype(section.dtype, device, "teacher.dtype")
    folder = resolve_model(section.name, revision=section.revision, offline=config.offline)
    choice = choose_policy(load_model(folder, dtype, device), None, config.max_length)
    teacher = Teacher(choice.policy)
    notes = [f"teacher: {reason}; taking {choice.policy.layout}" for reason in choice.reasons]
    if config.model.fused:
        notes.append(f"teacher: {fuse_checked(choice.policy)[1]}")
    weights = sum(p.numel() for p in choice.policy.parameters())
    notes.append(
        f"teacher {section.name}: {weights:,} weights in {str(dtype).split('.')[1]} "
        f"({teacher.num_bytes / 2**30:.2f} GiB), never trained"
    )
    return teacher, notes

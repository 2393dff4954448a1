"""The teacher of a run: whether it can teach this model, and loading it."""

import hashlib
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from luthier.config.tree import Config
from luthier.data.batch import collate
from luthier.data.other_tokens import OtherTokens
from luthier.errors import ConfigError
from luthier.kernels.divergence import SortedDistance
from luthier.methods.base import Method
from luthier.models.cross_teacher import AnyTeacher, CrossTeacher
from luthier.models.load import load_tokenizer
from luthier.models.policy import Policy
from luthier.models.teacher import KnownTeacher, Teacher
from luthier.parallel.cluster import Cluster
from luthier.places import cache_folder
from luthier.training.asked import Asked, TeacherOrder, TeacherTokens
from luthier.training.known_values import KnownValues
from luthier.training.rows import Data, Say
from luthier.training.second_model import load_second

MET_ROWS = 32
_STREAMED = (
    "teacher.top_k keeps what the teacher says of each row, and the rows of a stream are new in each step; set "
    "data.streaming: false, or leave out teacher.top_k"
)


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
    if config.teacher is not None and config.teacher.top_k is not None and method.sampling is not None:
        raise ConfigError(
            f"teacher.top_k asks the teacher once about the answers in the data, and method {config.method.name} "
            "learns from answers that the model has yet to write; leave out teacher.top_k, or turn those answers off "
            "(method.lmbda: 0)"
        )
    if config.teacher is not None and config.teacher.top_k is not None and config.data.streaming:
        raise ConfigError(_STREAMED)


def check_vocabulary(config: Config, method: Method, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuses a teacher for whom the student's token ids are not the same tokens.

    Raises:
        ConfigError: names both sizes and the first difference.
    """
    if config.teacher is None or isinstance(method.teacher_divergence, SortedDistance):
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
        "family, or method: uld, which learns across vocabularies."
    )


def build_teacher(
    config: Config, policy: Policy, method: Method, data: Data, *, cluster: Cluster, say: Say
) -> tuple[AnyTeacher | None, Data, list[str]]:
    """The teacher where the policy is, the rows, and notes on it. None where the config has none.

    With `teacher.top_k` it is asked once, rows bring along what it says, and it does not stay in memory.

    Args:
        data: the rows as the method wants them.
        say: told at once what happens, as it may take long.

    Raises:
        LuthierError: it cannot be loaded, or its likeliest tokens cannot be known beforehand.
    """
    section, measure = config.teacher, method.teacher_divergence
    if section is None or measure is None:
        return None, data, []
    if section.top_k is not None and data.stream is not None:
        raise ConfigError(_STREAMED)
    other, notes = load_second(config, policy, "teacher", section.name, section, grown=False)
    teacher, weights = Teacher(other), sum(p.numel() for p in other.parameters())
    about = f"teacher {section.name}: {weights:,} weights in {str(other.model.dtype).split('.')[1]}"
    crossing = isinstance(measure, SortedDistance)
    sizes = [p.model.config.get_text_config().vocab_size for p in (policy, other)]
    k = min(section.top_k or (measure.k if crossing else 0), *sizes)
    live: Teacher | CrossTeacher = teacher
    asked: Asked = TeacherTokens(other, k, measure.temperature, min(sizes))
    if crossing:
        tokenizers = _tokenizers(config)
        live = CrossTeacher(other, OtherTokens(*tokenizers), k, measure.temperature)
        asked = TeacherOrder(live, "/".join(map(_hash, tokenizers)))
        notes.append(_meeting(section.name, live, data))
    if section.top_k is None:
        return live, data, [*notes, f"{about} ({teacher.num_bytes / 2**30:.2f} GiB), never trained"]
    make = KnownValues(asked, cluster, say, cache_folder("teacher"))
    held_out = make(data.held_out) if data.held_out is not None else None
    known = replace(data, train=make(data.train), held_out=held_out)
    size = 4 * sum(asked.width)
    notes.append(
        f"{about}, asked before training for {section.top_k} tokens of each prediction ({size} bytes)"
    )
    return KnownTeacher(crossing), known, notes


def _meeting(name: str, teacher: CrossTeacher, data: Data) -> str:
    """How much of the first rows a teacher with another tokenizer can say anything about."""
    rows = min(len(data.train.lengths), MET_ROWS)
    share = teacher.share(collate([data.train.example(row) for row in range(rows)]))
    if not share:
        raise ConfigError(
            f"of the first {rows} rows no learned token begins where one of teacher {name} does, so "
            "nothing can be learned from it; take a teacher whose tokenizer is made for the same kind of text"
        )
    return (
        f"teacher: it reads the rows with its own tokenizer; {share:.0%} of what is learned begins where a token of "
        f"its own does (first {rows} rows)"
    )


def _tokenizers(config: Config) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Those of model and teacher."""
    assert config.teacher is not None
    name, revision, new = config.model.name, config.model.revision, config.model.new_tokens
    ours = load_tokenizer(name, revision=revision, offline=config.offline, new_tokens=new)
    return ours, load_tokenizer(config.teacher.name, revision=config.teacher.revision, offline=config.offline)


def _hash(tokenizer: PreTrainedTokenizerFast) -> str:
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()

"""Tasks of lm-eval (EleutherAI's evaluation harness), with a model of ours behind its interface.

A task is a name that the harness knows, or a YAML file that describes one. The harness makes the requests and the
scores; the model answers three kinds: how likely a text is after another, how likely a whole text is, and what comes
next. The first two go through the policy, packed without padding, the last through the generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.data.batch import Example, Segment, collate
from luthier.data.pack import pack
from luthier.errors import ConfigError, ModelError
from luthier.models.inference import Loaded
from luthier.models.tripwire import choose_policy
from luthier.rollout.native import NativeGenerator
from luthier.rollout.sampling import SamplingSettings

NO_LIMIT = 4096
"""Tokens that a model without a longest context reads of one request."""


@dataclass(frozen=True)
class TaskScore:
    """One number of a task."""

    task: str
    metric: str
    value: float
    error: float | None
    """Its standard error, as the harness reckons it."""


def need_harness() -> None:
    """Raises ConfigError where lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "--task needs lm-eval, which is not installed; install it with: pip install 'luthier[lm-eval]'"
        )


def run_tasks(
    loaded: Loaded,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    chat: bool = False,
) -> list[TaskScore]:
    """Scores of a model in tasks of the harness.

    Args:
        loaded: the model.
        tasks: names that the harness knows, or YAML files.
        limit: only so many rows of each task.
        few_shot: examples before each question; None: as the task says.
        chat: put requests through the model's chat template.

    Raises:
        ConfigError: lm-eval is not installed, or knows no such task.
        ModelError: `chat`, and the model has no chat template.
    """
    need_harness()
    if chat and loaded.template is None:
        raise ModelError(
            "the model has no chat template, so tasks cannot be put to it as chats; leave out --task-chat"
        )
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    files = [Path(name) for name in tasks if name.endswith((".yaml", ".yml"))]
    if missing := [file for file in files if not file.is_file()]:
        raise ConfigError(f"there is no file {missing[0]} with a task")
    manager = TaskManager(include_path=sorted({str(file.parent.resolve()) for file in files}) or None)
    names = [_name_in(Path(name)) if name.endswith((".yaml", ".yml")) else name for name in tasks]
    known = set(manager.all_tasks)
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"lm-eval knows no task {unknown[0]!r}; give a name that it lists, or a YAML file")
    found: Any = simple_evaluate(
        model=adapter_of(loaded),
        tasks=list(names),
        num_fewshot=few_shot,
        limit=limit,
        task_manager=manager,
        apply_chat_template=chat,
        bootstrap_iters=1000,
        log_samples=False,
    )
    return _scores(found["results"])


def _name_in(file: Path) -> str:
    """What a file calls its task."""
    import yaml

    class Loose(yaml.SafeLoader):
        """Reads the harness's own tags, such as !function, as nothing."""

    Loose.add_multi_constructor("!", lambda loader, tag, node: None)
    found: Any = yaml.load(file.read_text(encoding="utf-8"), Loose)
    name = found.get("task") if isinstance(found, Mapping) else None
    if not isinstance(name, str):
        raise ConfigError(f"{file} does not say `task: NAME`, so it describes no task of lm-eval")
    return name


def _scores(results: Mapping[str, Mapping[str, Any]]) -> list[TaskScore]:
    found: list[TaskScore] = []
    for task, numbers in results.items():
        for key, value in numbers.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")
            label = metric if kind == "none" else f"{metric} ({kind})"
            found.append(TaskScore(task, label, float(value), error if isinstance(error, float) else None))
    return found


def adapter_of(loaded: Loaded) -> Any:
    """A model as the harness wants it: a subclass of its `LM`."""
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

    requests = Requests(loaded)

    class Ours(LM):
        """Hands requests on."""

        tokenizer_name = "luthier"

        def loglikelihood(self, requests_: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return requests.continuations([one.args for one in requests_])

        def loglikelihood_rolling(self, requests_: Any, disable_tqdm: bool = False) -> list[float]:
            return requests.texts([one.args[0] for one in requests_])

        def generate_until(self, requests_: Any, disable_tqdm: bool = False) -> list[str]:
            return requests.answers([one.args for one in requests_])

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return requests.chat(chat_history)

    return Ours()


class Requests:
    """Answers the harness's three kinds of requests with a model."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded
        self.policy = choose_policy(loaded.model).policy.eval()
        self.generator = NativeGenerator(
            loaded.model, eos_token_ids=loaded.eos_token_ids, tokenizer=loaded.tokenizer
        )
        self.longest = self.generator.max_positions or NO_LIMIT
        tokenizer: Any = loaded.tokenizer
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.first: int = first if first is not None else 0

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each text and its continuation: ln p of the continuation, and whether it is the likeliest at each token.

        Both are tokenised together, since a word's start may belong to it; white space at the first's end goes to the
        second. What is too long loses tokens at its beginning.
        """
        examples = [self._pair(*pair) for pair in pairs]
        return self._scored(examples)

    def texts(self, texts: Sequence[str]) -> list[float]:
        """ln p of each text, in windows of the longest context, each of whose tokens is predicted once."""
        examples, owners = [], []
        for number, text in enumerate(texts):
            ids = [self.first, *self._ids(text)]
            step = self.longest - 1
            for start in range(0, max(1, len(ids) - 1), step):
                window = ids[start : start + step + 1]
                examples.append((window, len(window) - 1))
                owners.append(number)
        totals = [0.0] * len(texts)
        for owner, (logp, _) in zip(owners, self._scored(examples), strict=True):
            totals[owner] += logp
        return totals

    def answers(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """What comes next after each text, until one of its stop texts."""
        found = [""] * len(requests)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, (_, settings) in enumerate(requests):
            groups.setdefault(_settings_key(settings), []).append(place)
        for (stop, most, temperature, top_p), places in groups.items():
            most = min(most, self.longest - 1)
            prompts = [
                self._ids(requests[place][0])[-(self.longest - most) :] or [self.first] for place in places
            ]
            settings = SamplingSettings(max_new_tokens=most, temperature=temperature, top_p=top_p, stop=stop)
            for place, one in zip(places, self.generator.generate(prompts, settings), strict=True):
                found[place] = one[0].text
        return found

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation as the model was trained to see it, up to where its answer begins."""
        template = self.loaded.template
        assert template is not None, "checked at the start"
        return template.prompt_text([dict(message) for message in messages])

    def _pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        blank = len(context) - len(context.rstrip())
        if blank:
            context, continuation = context[:-blank], context[-blank:] + continuation
        before = self._ids(context) or [self.first]
        whole = self._ids(context + continuation) if context else [self.first, *self._ids(continuation)]
        num = max(1, len(whole) - len(before))
        return whole[-self.longest :] if len(whole) > 1 else [self.first, *whole], num

    def _ids(self, text: str) -> list[int]:
        tokenizer: Any = self.loaded.tokenizer
        return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    @torch.no_grad()
    def _scored(self, examples: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """For each sequence with how many of its last tokens count: Σ ln p, and whether all are the likeliest."""
        found = [(0.0, True)] * len(examples)
        lengths = np.array([len(ids) for ids, _ in examples], dtype=np.int64)
        device = self.loaded.model.device
        for places in pack(lengths, max(4096, int(lengths.max(initial=1)))):
            chosen = [examples[int(place)] for place in places]
            batch = collate([_example(*one) for one in chosen]).to(device)
            said = self.policy.statistics(batch, ("is_top",))
            logp_Q = torch.zeros(len(chosen), dtype=torch.float64, device=device)
            wrong_Q = torch.zeros_like(logp_Q)
            logp_Q.index_add_(0, batch.sequence_N, said["logp"].double())
            wrong_Q.index_add_(0, batch.sequence_N, 1 - said["is_top"].double())
            for place, logp, wrong in zip(places, logp_Q.tolist(), wrong_Q.tolist(), strict=True):
                found[int(place)] = (logp, wrong == 0)
        return found


def _example(ids: list[int], num: int) -> Example:
    weights = np.zeros(len(ids), dtype=np.float32)
    weights[len(ids) - num :] = 1
    return Example((Segment(np.array(ids, dtype=np.int32), weights),))


def _settings_key(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Stop texts, longest answer, temperature and top_p of one request."""
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    most = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or 256)
    sampled = bool(settings.get("do_sample", False))
    temperature = float(settings.get("temperature") or 0.0) if sampled else 0.0
    return tuple(text for text in stop if text), most, temperature, float(settings.get("top_p") or 1.0)

"""The whole configuration of a run as one tree of frozen sections.

Every section refuses unknown keys. The docstring under a field is its help text, its line in the docs and
its label in the web form. `null` means absent: the key's default holds, exactly as if the key were not there.
The one exception is a key that may be null and has another default (`train.max_grad_norm: null` switches
clipping off). Values are not converted between kinds: `"2"` is text and `yes` is no boolean.
Relative paths start at the current folder, as in a shell. Nothing here imports torch.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from luthier.config.data_section import DataSection
from luthier.config.forms import KeysAlone, Shorthand
from luthier.config.lora_section import LoraSection, no_restarts, nothing_lost
from luthier.config.optim_section import OptimSection, ScheduleSection
from luthier.config.peft_section import PeftSection
from luthier.config.problems import Problem, impossible
from luthier.config.qat_section import QatSection, qat_clashes
from luthier.config.quant_section import QuantSection, tables_clash
from luthier.config.reference_section import ReferenceSection
from luthier.config.section import Positive, Section, Text
from luthier.config.teacher_section import TeacherSection
from luthier.config.tune_section import TuneSection
from luthier.config.whole_weights import beside_adapters, hindrances, of_whole_weights


class ModelSection(Section):
    """The model that is tuned. `model: NAME` is short for `model: {name: NAME}`."""

    name: Text
    """A folder, a hub id (`Qwen/Qwen3-0.6B`), a `.gguf` file or a `demo:` name (`luthier models list`)."""

    revision: Text | None = None
    """Commit, branch or tag of a hub id."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights. `auto`: bfloat16 where the device computes it fast, float32 otherwise."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train. `auto`: a GPU when there is one."""

    unpack: bool | None = None
    """Decode a model that others stored in few bits once, into a folder of the cache, and train that. Absent: only GGUF
    files; false: not even these, so that their weights stay in the bits of the file."""

    packing: bool | None = None
    """Documents end to end in one stream. Absent: yes if the model gives the same numbers that way."""

    fused: bool = True
    """Decoder layers by hand-written passes where these give the plain layers' numbers. false: never."""

    compile: bool = False
    """Decoder layers that stay plain through torch.compile, each on its own; the first step waits for it."""

    products: Literal["fp8"] | None = None
    """`fp8`: without adapters, linear layers multiply 8-bit floats; weights and their gradients stay as they are."""

    router_aux_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of the loss that evens out the experts of a mixture. Absent: the model's own, if its configuration has
    `output_router_logits`; else none."""

    router_z_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss that keeps the logits of its routers small; 0.001 is usual."""

    new_tokens: Annotated[dict[str, str], KeysAlone()] = Field(default_factory=dict)
    """Tokens to add to the vocabulary: a list, or each with words for what it stands for (`{<tool>: call a tool}`).
    It starts as the mean of the tokens of these words, without words as the mean of all tokens."""

    train_new_tokens: bool = True
    """With `lora`: train the embeddings of new tokens, and no others. false: they stay what they started as."""

    @model_validator(mode="after")
    def _new_tokens_are_tokens(self) -> Self:
        for token in self.new_tokens:
            if not token or token != token.strip():
                text = (
                    f"model.new_tokens names {token!r}; a token that is empty, or begins or ends with white space, "
                    "gets lost in tokenizers; write it without"
                )
                raise impossible(Problem("model.new_tokens", text))
        return self


class MethodSection(Section):
    """What is learned. `method: sft` is short for `method: {name: sft}`; other keys are the method's own."""

    model_config = ConfigDict(extra="allow")

    name: Text = "sft"
    """Name of a file in `methods/`, or the path of a Python file (`./mine.py`) with a method of your own."""

    @property
    def options(self) -> dict[str, Any]:
        """The method's own keys."""
        return dict(self.model_extra or {})


class TrainSection(Section):
    """How long and in which portions."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data, unless `steps` or `max_tokens` is given."""

    steps: Positive | None = None
    """Optimizer steps; data is repeated as often as they need."""

    max_tokens: Positive | None = None
    """Instead of `steps`: tokens to train on in all. The learning rate follows them, and the run ends with the step
    that reaches them."""

    new_token_steps: Annotated[int, Field(ge=0)] = 0
    """In the first so many steps only the rows of `model.new_tokens` are trained; everything else begins after them."""

    tokens_per_step: Positive = 16384
    """Tokens that one update learns from, over all ranks together."""

    tokens_per_micro_batch: Positive | None = None
    """Tokens in one forward and backward pass. Absent: 4,096 (2,048 on a CPU, or the longest row), or
    `tokens_per_step` if that is less."""

    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this norm. null: never."""

    average: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep a running mean of the weights, which is evaluated, saved and chatted with: how much of it stays at each step
    (`0.999`; an EMA). 1: all steps count alike. Absent: the last weights are kept."""

    average_from: Positive | None = None
    """The first step that counts for `average`. Absent: 1."""

    optimizer_in_backward: bool = False
    """Update each weight as soon as its gradient is whole, and free the gradient: there is never one for all weights at
    once. Without clipping (`max_grad_norm: null`), with one micro-batch a step."""

    neftune_noise_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the noise on embedded tokens in training (NEFTune, arXiv:2310.05914, which has 5 to 15). 0: none."""

    threads: Positive | None = None
    """CPU threads. Absent: all cores that this process may use, by its affinity and its container."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.max_tokens is not None:
            text = "train.steps and train.max_tokens are both given; keep one of them"
            raise impossible(Problem("train.max_tokens", text))
        return self

    @model_validator(mode="after")
    def _average_from_has_an_average(self) -> Self:
        if self.average_from is not None and self.average is None:
            text = "train.average_from is given, but train.average is not; set train.average, such as 0.999, or 1"
            raise impossible(Problem("train.average_from", text))
        return self

    @model_validator(mode="after")
    def _micro_fits(self) -> Self:
        if (self.tokens_per_micro_batch or 0) > self.tokens_per_step:
            text = (
                f"train.tokens_per_micro_batch is {self.tokens_per_micro_batch}, more than the "
                f"{self.tokens_per_step} of train.tokens_per_step; lower it or raise train.tokens_per_step"
            )
            raise impossible(Problem("train.tokens_per_micro_batch", text))
        return self

    @model_validator(mode="after")
    def _in_backward_has_whole_gradients(self) -> Self:
        if self.optimizer_in_backward and (problems := hindrances(self)):
            raise impossible(*problems)
        return self

    @property
    def micro_tokens(self) -> int:
        """Tokens in one micro-batch, with the default resolved."""
        return self.tokens_per_micro_batch or min(4096, self.tokens_per_step)

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps that are asked for; for a number of tokens, of full steps. None: so many epochs are."""
        if self.max_tokens is not None:
            return -(-self.max_tokens // self.tokens_per_step)
        return self.steps


class MemorySection(Section):
    """What becomes of memory: which activations are kept for the backward pass, and how much may be used."""

    activations: Literal["auto", "keep", "recompute", "offload"] = "auto"
    """`auto` keeps those of as many layers as fit (in 60 % of the free RAM, 92 % of a GPU) and recomputes the rest;
    `keep` keeps all, `recompute` none; `offload` moves layer inputs from the GPU to RAM. Gradients stay the same."""

    limit: Annotated[float, Field(gt=0)] | None = None
    """Most memory in GiB that a training process may hold where it computes. Absent: what is free."""

    optimizer: Literal["ram", "disk"] = "ram"
    """Where the optimizer's states lie on a CPU. `disk`: in files under `run.root` that the kernel reads and writes as
    it needs memory; slower, with the same numbers."""

    keep_pages: bool = True
    """On a CPU, free memory stays with the process for reuse, which saves page faults (glibc only)."""


class EvalSection(Section):
    """What is watched while training."""

    every: Positive | None = None
    """Evaluate after this many steps. Absent: only at the end."""

    patience: Positive | None = None
    """Stop after this many evaluations without a better loss."""

    samples: Annotated[int, Field(ge=0)] = 4
    """Held-out prompts answered before and after training, for the report."""

    metrics: list[str] = Field(default_factory=list)
    """Metrics of generated answers to held-out rows, before and after: `exact_match`, `field_f1` ..."""

    metric_rows: Positive | None = None
    """How many held-out rows the metrics use. Absent: all."""

    answer_tokens: Positive = 128
    """Longest generated answer in tokens."""

    @model_validator(mode="after")
    def _patience_counts_evaluations(self) -> Self:
        if self.patience and not self.every:
            text = "eval.patience counts evaluations, but eval.every is absent; set eval.every"
            raise impossible(Problem("eval.patience", text))
        return self


class CheckpointSection(Section):
    """What is kept to resume from."""

    every: Positive | None = None
    """Save after this many steps. Absent: only when interrupted and at the end."""

    keep: Positive = 2
    """How many of the newest are kept; the best one, if evaluated, is kept besides."""

    start: Text | None = None
    """Begin where another run stood: the folder of one of its checkpoints, or of the run for the newest. Weights,
    optimizer and position in the data are taken over; steps and tokens are counted on."""


FolderName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        json_schema_extra={
            "expected": "a folder name of letters, digits, `.`, `_`, `-` that starts with a letter or digit"
        },
    ),
]


class RunSection(Section):
    """Where results go. `run: NAME` is short for `run: {name: NAME}`."""

    name: FolderName | None = None
    """Name of the run's folder. Absent: method, model and time of start."""

    root: Text = "runs"
    """Folder that holds the runs."""


def disagreements(
    data: DataSection | None,
    eval: EvalSection | None,
    schedule: ScheduleSection | None,
    train: TrainSection | None,
) -> list[Problem]:
    """Why these sections cannot work together. None stands for a section with faults of its own."""
    problems = []
    if data and eval and (eval.every or eval.patience) and not data.holds_out:
        text = "eval.every and eval.patience need held-out rows; give data.eval_path or data.eval_rows"
        problems.append(Problem("eval.every", text))
    if data and eval and eval.metrics and not data.holds_out:
        text = "eval.metrics are measured on held-out rows; give data.eval_path or data.eval_rows"
        problems.append(Problem("eval.metrics", text))
    if data and train and (data.max_length or 0) > train.micro_tokens:
        text = (
            f"data.max_length is {data.max_length}, but a micro-batch holds {train.micro_tokens} tokens; "
            "raise train.tokens_per_micro_batch or lower data.max_length"
        )
        problems.append(Problem("data.max_length", text))
    if schedule and train and train.planned_steps:
        problems += _phases_beyond(schedule, train, train.planned_steps)
    return problems


def _phases_beyond(schedule: ScheduleSection, train: TrainSection, steps: int) -> list[Problem]:
    """Phases of the schedule that are longer than the run."""
    warmup = schedule.warmup_steps or 0
    decay = (schedule.decay_steps or 0) if schedule.name == "wsd" else 0
    ends = f"the run ends after the {steps} of train.steps; lower it or raise train.steps"
    if train.max_tokens is not None:
        ends = f"train.max_tokens are {steps} steps; lower it or raise train.max_tokens"
    if warmup > steps:
        text = f"schedule.warmup_steps is {warmup}, but {ends}"
        return [Problem("schedule.warmup_steps", text)]
    if warmup + decay > steps:
        text = f"schedule.decay_steps is {decay}, after {warmup} of warm-up, but {ends}"
        return [Problem("schedule.decay_steps", text)]
    return []


class Config(Section):
    """A run, described by few plain keys."""

    model: Annotated[ModelSection, Shorthand("name")]
    data: Annotated[DataSection, Shorthand("path")]
    method: Annotated[MethodSection, Shorthand("name")] = MethodSection()
    reference: Annotated[ReferenceSection, Shorthand("name")] = ReferenceSection()
    teacher: Annotated[TeacherSection | None, Shorthand("name")] = None
    lora: LoraSection | None = None
    peft: Annotated[PeftSection | None, Shorthand("type")] = None
    quant: Annotated[QuantSection | None, Shorthand("name")] = None
    tune: Annotated[TuneSection | None, Shorthand("name")] = None
    qat: Annotated[QatSection | None, Shorthand("name")] = None
    optim: OptimSection = OptimSection()
    schedule: Annotated[ScheduleSection, Shorthand("name")] = ScheduleSection()
    train: TrainSection = TrainSection()
    memory: MemorySection = MemorySection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    run: Annotated[RunSection, Shorthand("name")] = RunSection()

    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes the order of rows, new weights, dropout and sampling."""

    offline: bool = False
    """Refuse every use of the network, also for hub ids that are not in the cache."""

    @model_validator(mode="after")
    def _new_token_steps_have_tokens(self) -> Self:
        trained = self.model.train_new_tokens or self.lora is None
        if self.train.new_token_steps and not (self.model.new_tokens and trained):
            text = (
                "train.new_token_steps is given, but no new tokens are trained; name them in model.new_tokens"
            )
            raise impossible(Problem("train.new_token_steps", text))
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = disagreements(self.data, self.eval, self.schedule, self.train)
        if self.peft is not None:
            quant = self.quant.name if self.quant else None
            problems += self.peft.clashes(
                self.lora is not None, quant, bool(self.model.new_tokens), self.qat is not None
            )
        if self.quant and not self.has_adapter:
            text = (
                f"quant.name is {self.quant.name}, which stores frozen weights, but without lora all weights "
                "are tuned; add the section lora (`lora: {}`), or leave out quant"
            )
            problems.append(Problem("quant", text))
        if self.quant:
            problems += tables_clash(self.quant, self.model.new_tokens, self.peft)
        if self.has_adapter:
            section = "lora" if self.lora else "peft"
            problems += beside_adapters(section, self.tune, in_backward=self.train.optimizer_in_backward)
            problems += of_whole_weights(self.model.products, rounded=self.optim.stochastic_rounding)
        if self.qat:
            compiled, products = self.model.compile, self.model.products
            problems += qat_clashes(self.qat, self.lora, self.quant, compiled=compiled, products=products)
        if self.lora and self.lora.restart and (fault := no_restarts(self.train)):
            problems.append(Problem("lora.restart", fault))
        if self.lora and not self.quant and (fault := nothing_lost(self.lora)):
            problems.append(Problem("lora.init", fault))
        if self.has_adapter and self.reference.sync_every and (self.reference.sync_alpha or 1) < 1:
            text = (
                f"reference.sync_alpha is {self.reference.sync_alpha:g}, but a mix of two adapters (section lora) is "
                "no adapter of their rank; set it to 1, or tune all weights by leaving out lora"
            )
            problems.append(Problem("reference.sync_alpha", text))
        if problems:
            raise impossible(*problems)
        return self

    @property
    def max_length(self) -> int:
        """Longest row in tokens, with the default resolved."""
        return self.data.max_length or self.train.micro_tokens

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, with the default resolved."""
        if self.optim.lr is not None:
            return self.optim.lr
        if self.peft is not None:
            return 1e-3
        return 2e-4 if self.lora else 2e-5

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained, and not the model's own weights."""
        return self.lora is not None or self.peft is not None

"""Why settings for the training of a model's own weights cannot work."""

from typing import TYPE_CHECKING

from luthier.config.problems import Problem
from luthier.config.tune_section import TuneSection

if TYPE_CHECKING:
    from luthier.config.tree import TrainSection


def hindrances(train: "TrainSection") -> list[Problem]:
    """What keeps weights from being updated within the backward pass."""
    problems = []
    if train.max_grad_norm is not None:
        text = (
            f"train.max_grad_norm is {train.max_grad_norm:g}, but with train.optimizer_in_backward weights are updated "
            "before the norm of all gradients is known; set train.max_grad_norm: null"
        )
        problems.append(Problem("train.max_grad_norm", text))
    if train.micro_tokens < train.tokens_per_step:
        text = (
            f"a micro-batch holds {train.micro_tokens} of the {train.tokens_per_step} tokens of train.tokens_per_step, "
            "but with train.optimizer_in_backward a step is one micro-batch; set train.tokens_per_micro_batch: "
            f"{train.tokens_per_step}, or lower train.tokens_per_step"
        )
        problems.append(Problem("train.optimizer_in_backward", text))
    if train.new_token_steps:
        text = (
            "train.new_token_steps forgets gradients between the backward pass and the update, which are one with "
            "train.optimizer_in_backward; leave out one of the two"
        )
        problems.append(Problem("train.new_token_steps", text))
    return problems


def beside_adapters(section: str, tune: TuneSection | None, *, in_backward: bool) -> list[Problem]:
    """What has no meaning where this section, `lora` or `peft`, adds adapters."""
    problems = []
    if tune is not None:
        text = (
            f"tune.name is {tune.name}, which chooses the model's own weights, and {section} tunes adapters beside "
            "them; leave out one of the two (lora.modules_to_save tunes modules whole beside adapters)"
        )
        problems.append(Problem("tune", text))
    if in_backward:
        text = (
            f"train.optimizer_in_backward saves the gradients of all weights, but with {section} only adapters have "
            "any, which are small; leave out one of the two"
        )
        problems.append(Problem("train.optimizer_in_backward", text))
    return problems


def of_whole_weights(products: str | None, *, rounded: bool) -> list[Problem]:
    """What is for the model's own weights and has no meaning beside adapters."""
    problems = []
    if rounded:
        text = "optim.stochastic_rounding is true, but adapters are fp32: nothing is rounded; leave it out"
        problems.append(Problem("optim.stochastic_rounding", text))
    if products is not None:
        text = (
            f"model.products is {products}, which is for weights that are trained themselves; beside an adapter they "
            "are frozen and can be stored so, too: write `quant: {name: fp8, products: true}` instead"
        )
        problems.append(Problem("model.products", text))
    return problems

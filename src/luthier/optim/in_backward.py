"""Updates within the backward pass: a weight is updated as soon as its gradient is whole, which is then freed.

So there is never more than one layer's worth of gradients, instead of one for every weight. The numbers are those of
updates after the backward pass, bit for bit: what comes later in the pass has no use for the weight any more, because
autograd adds a gradient to a leaf only when all that read the leaf has been gone through.

What needs all gradients at once cannot be had: clipping by their norm, sums over several micro-batches or ranks.
"""

from collections.abc import Callable

from torch import Tensor, nn

from luthier.optim.stepper import Stepper


def step_in_backward(optimizer: Stepper, now: Callable[[], bool]) -> None:
    """Lets `optimizer` update each of its parameters within backward passes, while `now()` says so.

    Its `step` is still to be called: it updates what had no gradient in the pass. `now` should hold in the last
    backward pass of a step, when nothing more is added to any gradient.
    """
    assert not optimizer.gradients.homes, "gradients that lie end to end are small"
    optimizer.in_backward = True

    def whole(parameter: Tensor) -> None:
        if now():
            assert isinstance(parameter, nn.Parameter), "only parameters have this hook"
            optimizer.step_now(parameter)

    for parameter in optimizer.gradients.loose:
        parameter.register_post_accumulate_grad_hook(whole)

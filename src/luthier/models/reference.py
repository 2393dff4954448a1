"""The frozen reference that a policy is compared with: itself as it was, another model, or numbers made beforehand.

- `OwnStart`: the policy with the weights it had when training began. Only what is trained can differ, so only that
  is kept: for an adapter a few megabytes, for full fine-tuning a second copy of the weights.
- `WithoutPrompt`: the policy without the tokens that it learns to put first, which are no change of it at the start.
- `Synchronised`: the same, but now and then it moves to where the policy is.
- `OtherModel`: a second model.
- `Known`: what one of these said of each row, made once before training and kept (training/known_values.py).

An own start puts its weights into the places of the live ones and takes them out again. It therefore runs the very
code of the policy, fused layers included: before the first update both say the same, bit for bit. With an adapter
that began at zero it is the model with its adapters off, modules trained whole too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.models.lora import restarted_parts
from luthier.models.peft_adapters.held import without_peft
from luthier.models.policy import Policy

GIVEN = "reference"
"""The name under which batches carry what the reference says of their predictions."""


class Reference:
    """The interface: log-probabilities without a gradient."""

    num_bytes = 0
    """Memory that is taken for it alone."""

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probability of every prediction, [N], in fp32, without gradient and without dropout."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Told after every optimizer step how many there were."""

    def state(self) -> list[Tensor]:
        """What a checkpoint must hold so that a resumed run compares with the same; nothing where it never moves."""
        return []

    def restore(self, state: Sequence[Tensor]) -> None:
        """Goes on from where `state` was taken."""


def frozen_logprobs(policy: Policy, batch: Batch) -> Tensor:
    """What a policy says of every prediction, [N], without gradient and without dropout."""
    was_training = policy.training
    if was_training:
        policy.eval()
    try:
        with torch.no_grad():
            return policy(batch)
    finally:
        if was_training:
            policy.train()


class OwnStart(Reference):
    """A policy as it is when this is made. Make it before the first update and before a checkpoint is loaded.

    Args:
        policy: what is trained; its trained weights are copied.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self.trained: list[Tensor] = [p for p in policy.parameters() if p.requires_grad]
        self.trained += restarted_parts(policy)
        self.frozen = [parameter.detach().clone() for parameter in self.trained]

    @property
    def num_bytes(self) -> int:
        """Memory that the copies take."""
        return sum(weight.numel() * weight.element_size() for weight in self.frozen)

    def logprobs(self, batch: Batch) -> Tensor:
        with self.in_place():
            return frozen_logprobs(self.policy, batch)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the policy has the reference's weights. Not between a forward pass and its backward pass."""
        live = [parameter.data for parameter in self.trained]
        try:
            for parameter, weight in zip(self.trained, self.frozen, strict=True):
                parameter.data = weight
            yield
        finally:
            for parameter, weight in zip(self.trained, live, strict=True):
                parameter.data = weight


class Synchronised(OwnStart):
    """An own start that follows the policy: ref <- alpha · policy + (1 - alpha) · ref every so many steps.

    TR-DPO (arXiv:2404.09656): alpha below 1 is its soft update, 1 its hard one. A mix of two adapters is no adapter
    of their rank, so with adapters only alpha 1 means what it says. Weights are mixed in at least fp32 and rounded
    once to the type that the policy keeps them in.

    Args:
        policy: what is trained.
        every: optimizer steps from one move to the next.
        alpha: how far it moves, above 0 and at most 1.
    """

    def __init__(self, policy: Policy, every: int, alpha: float):
        super().__init__(policy)
        self.every, self.alpha = every, alpha

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if step % self.every:
            return
        for weight, parameter in zip(self.frozen, self.trained, strict=True):
            if self.alpha == 1:
                weight.copy_(parameter)
                continue
            wide = torch.promote_types(weight.dtype, torch.float32)
            weight.copy_((1 - self.alpha) * weight.to(wide) + self.alpha * parameter.to(wide))

    def state(self) -> list[Tensor]:
        return self.frozen

    @torch.no_grad()
    def restore(self, state: Sequence[Tensor]) -> None:
        for weight, saved in zip(self.frozen, state, strict=True):
            weight.copy_(saved)


class WithoutPrompt(Reference):
    """A policy without what it learns to put before the tokens, which no start makes the model beneath.

    Args:
        policy: what is trained, with an adapter of peft that is a prompt.
    """

    def __init__(self, policy: Policy):
        self.policy = policy

    def logprobs(self, batch: Batch) -> Tensor:
        with without_peft(self.policy.model):
            return frozen_logprobs(self.policy, batch)


class OtherModel(Reference):
    """A second model. It reads the same tokens; how documents go through it is its own affair.

    Args:
        policy: the other model, frozen, where the trained one is.
    """

    def __init__(self, policy: Policy):
        self.policy = policy.requires_grad_(False)

    @property
    def num_bytes(self) -> int:
        """Memory that its weights take."""
        return sum(weight.numel() * weight.element_size() for weight in self.policy.parameters())

    def logprobs(self, batch: Batch) -> Tensor:
        return frozen_logprobs(self.policy, batch)


class Known(Reference):
    """What was made beforehand: every batch brings it along."""

    def logprobs(self, batch: Batch) -> Tensor:
        assert GIVEN in batch.given, "the rows were looked up"
        return batch.given[GIVEN]

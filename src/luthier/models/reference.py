"""The frozen reference that a policy is compared with: itself, with the weights it had when training began.

Only what is trained can differ, so only that is kept: for an adapter a few megabytes, for full fine-tuning a second
copy of the weights. A pass of the reference puts these into the places of the live ones and takes them out again.
It therefore runs the very code of the policy, fused layers included: before the first update both say the same,
bit for bit. With an adapter that began at zero it is the model with its adapters off, modules trained whole too.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.models.policy import Policy


class Reference:
    """A policy as it is when this is made. Make it before the first update and before a checkpoint is loaded.

    Args:
        policy: what is trained; its trained weights are copied.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self.trained = [p for p in policy.parameters() if p.requires_grad]
        self.frozen = [parameter.detach().clone() for parameter in self.trained]

    @property
    def num_bytes(self) -> int:
        """Memory that the copies take."""
        return sum(weight.numel() * weight.element_size() for weight in self.frozen)

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probability of every prediction, [N], without gradient and without dropout."""
        was_training = self.policy.training
        if was_training:
            self.policy.eval()
        try:
            with torch.no_grad(), self.in_place():
                return self.policy(batch)
        finally:
            if was_training:
                self.policy.train()

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

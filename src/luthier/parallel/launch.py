"""Starts a command again as several processes, one a GPU, through torch's own launcher."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from luthier.errors import ConfigError


def relaunch(num_gpus: int, arguments: Sequence[str]) -> NoReturn:
    """Replaces this process by torchrun, which runs `luthier ARGUMENTS` once for each GPU.

    Raises:
        ConfigError: the machine has fewer GPUs.
    """
    import torch

    if num_gpus > (found := torch.cuda.device_count()):
        raise ConfigError(
            f"--gpus is {num_gpus}, but this machine has {found}. Lower it; several processes on the CPU are "
            f"started with: torchrun --nproc-per-node={num_gpus} -m luthier train ..."
        )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={num_gpus}", "-m", "luthier", *arguments]
    os.execv(sys.executable, command)


def is_worker() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "LOCAL_RANK" in os.environ

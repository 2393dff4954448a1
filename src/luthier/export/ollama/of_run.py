"""The Modelfile of a run."""

from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from luthier.errors import ModelError
from luthier.export.from_run import described_in
from luthier.export.gguf.known import architecture
from luthier.export.job import Job
from luthier.export.ollama.modelfile import Modelfile, modelfile

CONTEXT = "context_length"


def modelfile_of_run(job: Job, file: str, *, most: int | None = None) -> Modelfile:
    """What Ollama needs beside the GGUF file of this name. Nothing is merged for it.

    Args:
        most: tokens of context at most; None: as many as the model can read.

    Raises ModelError where the model cannot be run there as it was trained.
    """
    told = described_in(job, "generation_config.json")
    context = context_of(job)
    day = job.config.data.date
    return modelfile(
        tokenizer_of(job),
        told,
        file,
        context if most is None else min(context, most),
        now=datetime.now() if day is None else datetime.fromisoformat(day),
        variables=job.config.data.template_args,
    )


def context_of(job: Job) -> int:
    """How many tokens llama.cpp lets the model read."""
    config = config_of(job)
    return int(architecture(config).facts(config)[CONTEXT])


def config_of(job: Job) -> Any:
    """transformers' configuration of the run's model."""
    return AutoConfig.from_pretrained(described_in(job, "config.json"), local_files_only=True)


def tokenizer_of(job: Job) -> Any:
    """The run's tokenizer with its chat template."""
    folder: Path = described_in(job, "tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ModelError(f"{folder} has no tokenizer that transformers can read: {error}") from error

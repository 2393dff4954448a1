"""A model folder in Hugging Face's layout, for transformers and vLLM."""

from luthier.errors import ConfigError
from luthier.export.job import Job, Written


def write(job: Job) -> Written:
    """The adapter added into the weights of its base model."""
    from luthier.export.from_run import merge_run

    if job.whole:
        raise ConfigError(
            f"{job.folder.path} tuned all weights, so there is no adapter to merge: its model is {job.folder.model}."
        )
    target = job.target("merged")
    merge_run(job, target)
    how = f"""    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("{target.name}")
    tokenizer = AutoTokenizer.from_pretrained("{target.name}")
"""
    return Written("merged model", target, target, how=how)

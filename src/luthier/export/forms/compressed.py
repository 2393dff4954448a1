"""A model folder for vLLM and SGLang in int4, int8 or fp8, in the format of compressed-tensors."""

from luthier.export.job import Job, Written

TYPE = None


def write(job: Job) -> Written:
    """Linear layers in few bits, everything else in 16."""
    from luthier.export.compressed.of_run import write_of_run
    from luthier.export.compressed.types import TYPES

    note = "Rounded to the nearest without data; --to gptq and --to awq use the run's own rows."
    return write_of_run(job, "compressed", TYPES, note)

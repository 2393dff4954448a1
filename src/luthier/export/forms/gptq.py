"""The same folder in int4 or int8, rounded by GPTQ with some of the run's own rows."""

from luthier.export.job import Job, Written

TYPE = "int4"


def write(job: Job) -> Written:
    """Linear layers in few bits, what is lost in one column made up for by the others."""
    from luthier.export.compressed.gptq import by_gptq
    from luthier.export.compressed.of_run import write_of_run

    note = "Rounded by GPTQ, so that layers give nearly the same on rows like those of the run."
    return write_of_run(job, "gptq", ("int4", "int8"), note, by_gptq)

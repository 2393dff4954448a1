"""The same folder in int4, its columns scaled by what they are multiplied with (AWQ) on some of the run's own rows."""

from luthier.export.job import Job, Written

TYPE = "int4"


def write(job: Job) -> Written:
    """Linear layers in few bits; the scales are in norms and in the layers before."""
    from luthier.export.compressed.awq import by_awq
    from luthier.export.compressed.of_run import write_of_run

    note = "Scaled by AWQ before rounding, so that what is multiplied with large inputs loses less."
    return write_of_run(job, "awq", ("int4",), note, by_awq)

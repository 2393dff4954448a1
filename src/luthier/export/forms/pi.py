"""A folder for a Raspberry Pi 5: a GGUF (q8_0 unless told), Modelfile, scripts, prediction and self-test."""

from luthier.export.job import Job, Written

TYPE = "q8_0"


def write(job: Job) -> Written:
    """All of it. A model that does not fit is refused before anything is written."""
    from luthier.export.from_run import gguf_type, new_folder
    from luthier.export.pi.folder import write_pi

    return write_pi(job, new_folder(job.target("pi")), gguf_type(job.kind))

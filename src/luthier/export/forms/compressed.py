"""A model folder for vLLM and SGLang in int4, int8 or fp8, in the format of compressed-tensors."""

from luthier.export.job import Job, Written

TYPE = None


def write(job: Job) -> Written:
    """Linear layers in few bits, everything else in 16."""
    from luthier.errors import ConfigError
    from luthier.export.compressed.types import TYPES
    from luthier.export.compressed.write import write_compressed
    from luthier.export.from_run import model_folder, new_folder
    from luthier.runs.atomic import atomic_folder

    kind = job.kind
    if kind not in TYPES:
        raise ConfigError(
            f"--to is 'compressed:{kind}', and {kind!r} is not a type; known: {', '.join(TYPES)}."
        )
    target = new_folder(job.target(f"compressed-{kind}"))
    with (
        model_folder(job, target) as folder,
        atomic_folder(target, replace=False) as partial,
        job.bar("writing") as progress,
    ):
        stay = write_compressed(folder, partial, kind, progress=progress)
    notes = ["Rounded to the nearest without data: compare it with the trained model before use."]
    if stay:
        notes.append(
            f"{len(stay)} linear layers do not divide into its groups and stay in 16 bits, such as {stay[0]}."
        )
    return Written(f"model in {kind}", target, target, kind, tuple(notes), f"    vllm serve {target.name}")

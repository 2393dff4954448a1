"""A file for llama.cpp and Ollama in f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0."""

from luthier.export.job import Job, Written

TYPE = None


def write(job: Job) -> Written:
    """Weights in the type that was asked for, with tokenizer and chat template."""
    from luthier.export.from_run import gguf_of_run, gguf_type

    kind = gguf_type(job.kind)
    target = job.target("gguf", f"{job.folder.path.name}-{kind}.gguf")
    gguf_of_run(job, target, kind)
    return Written("GGUF", target, target, kind)

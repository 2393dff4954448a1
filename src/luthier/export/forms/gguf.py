"""A file for llama.cpp and Ollama in f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0, and with luthier[llama] in
q4_k_m, q6_k, iq4_xs and others of llama.cpp's own."""

from luthier.export.job import Job, Written

TYPE = None


def write(job: Job) -> Written:
    """Weights in the type that was asked for, with tokenizer and chat template."""
    from luthier.export.from_run import gguf_of_run, gguf_type

    kind = gguf_type(job.kind)
    target = job.target("gguf", f"{job.folder.path.name}-{kind}.gguf")
    notes = gguf_of_run(job, target, kind)
    return Written("GGUF", target, target, kind, notes, how=f"    llama-cli -m {target.name}")

"""The adapter alone as a GGUF, for llama.cpp's --lora and Ollama's ADAPTER beside a GGUF of the base model."""

from luthier.export.job import Job, Written


def write(job: Job) -> Written:
    """Low-rank updates by the names that the base's file has."""
    from luthier.errors import ConfigError
    from luthier.export.adapter import base_reference
    from luthier.models.base import base_folder
    from luthier.models.fingerprint import check_base
    from luthier.models.gguf import need_packages
    from luthier.models.peft_adapters.attach import peft_type_of

    need_packages("writing a GGUF")
    from luthier.export.gguf.adapter import write_adapter

    name = job.folder.path.absolute().name
    target = job.target("gguf", f"{name}-lora.gguf")
    if target.exists():
        raise ConfigError(f"{target} exists already. Remove it, or give another file with --out.")
    if job.whole:
        raise ConfigError(
            f"{job.folder.path} tuned all weights, so it has no adapter: its model is {job.folder.model}."
        )
    if (kind := peft_type_of(job.folder.adapter)) is not None:
        raise ConfigError(
            f"the adapter is of the type {kind}, and llama.cpp adds LoRA's updates only. Use --to gguf:TYPE."
        )
    base = base_folder(job.config)
    check_base(job.folder.adapter, base)
    write_adapter(base, job.folder.adapter, target, name=name)
    note = f"It belongs to {base_reference(job)[0]}: llama-cli -m BASE.gguf --lora {target}"
    return Written(
        "GGUF of the adapter",
        target,
        target,
        "f32",
        (note,),
        how=f"    llama-cli -m BASE.gguf --lora {target.name}",
    )

"""A folder for Ollama: a GGUF (q8_0 unless another type is given) and a Modelfile made from the chat template."""

from luthier.export.job import Job, Written

TYPE = "q8_0"


def write(job: Job) -> Written:
    """File and Modelfile. What the Modelfile cannot say is found before any weight is read."""
    from luthier.export.from_run import gguf_of_folder, gguf_type, model_folder, new_folder
    from luthier.export.ollama.of_run import modelfile_of_run
    from luthier.runs.atomic import atomic_folder

    kind = gguf_type(job.kind)
    target = new_folder(job.target("ollama"))
    name = job.folder.path.absolute().name
    file = f"{name}-{kind}.gguf"
    told = modelfile_of_run(job, file)
    with model_folder(job, target) as folder, atomic_folder(target, replace=False) as partial:
        types = gguf_of_folder(job, folder, partial / file, kind)
        (partial / "Modelfile").write_text(told.text, encoding="utf-8")
    notes = (*types, *told.notes, f"Next: ollama create {name.lower()} -f {target / 'Modelfile'}")
    return Written(
        "folder for Ollama",
        target,
        target / file,
        kind,
        notes,
        f"    ollama create {name.lower()} -f Modelfile",
    )

"""The adapter alone, in PEFT's format, with tokenizer and chat template."""

from luthier.export.job import Job, Written


def write(job: Job) -> Written:
    """A folder that `PeftModel.from_pretrained` loads onto its base model."""
    from luthier.export.adapter import base_reference, copy_adapter
    from luthier.export.from_run import new_folder
    from luthier.runs.atomic import atomic_folder

    target = new_folder(job.target("adapter-export"))
    with atomic_folder(target, replace=False) as partial:
        copy_adapter(job, partial)
    how = f"""    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained("{target.name}")
"""
    return Written("adapter", target, target, notes=(f"Its base model: {base_reference(job)[0]}",), how=how)

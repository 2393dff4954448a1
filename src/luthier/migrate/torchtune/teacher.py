"""torchtune's recipes of knowledge distillation: a second model, and a loss of both."""

from pathlib import Path

from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.readers import real
from luthier.migrate.torchtune.models import hub_name

KEYS = ("teacher_model", "teacher_checkpointer", "kd_loss", "kd_ratio")
_BETA = {"ForwardKL": 0.0, "ReverseKL": 1.0}
"""Which way the distance is measured, by the beginning of the loss's name."""


def has_teacher(draft: Draft) -> bool:
    """Whether the recipe learns from a second model."""
    return any(key in draft.given for key in KEYS)


def put_teacher(draft: Draft, source: str) -> None:
    """Sets `method: distill` and `teacher`. `source`: the file's text."""
    checkpointer, loss = draft.given.get("teacher_checkpointer"), draft.given.get("kd_loss")
    folder = checkpointer.get("checkpoint_dir") if isinstance(checkpointer, dict) else None
    if not isinstance(folder, str):
        draft.block("teacher_checkpointer", "has no checkpoint_dir, so it is not known who the teacher is")
        return
    kind = str(loss.get("_component_", "")).rpartition(".")[2] if isinstance(loss, dict) else "ForwardKL"
    beta = next((value for name, value in _BETA.items() if kind.startswith(name)), None)
    if beta is None:
        draft.block("kd_loss", f"{kind} is a distance that is not there; known: forward and reverse KL")
        return
    draft.put("method.name", "distill")
    draft.put("method.beta", beta)
    if "kd_loss" in draft.given:
        draft.find("kd_loss", Kind.MAPPED, "", "method.beta")
    share = draft.get("kd_ratio", real, 0.5)
    if "kd_ratio" in draft.given:
        draft.map("kd_ratio", "method.alpha", share)
    else:
        draft.put("method.alpha", share, f"the default of {draft.tool}")
    here = (Path(folder) / "config.json").is_file()
    name = folder if here else hub_name(folder, source) or folder
    draft.map("teacher_checkpointer", "teacher.name", name)
    if not here and name != folder:
        draft.note("teacher.name", f"the hub's model, because {folder} is not here")
    if "teacher_model" in draft.given:
        draft.find("teacher_model", Kind.MAPPED, "", "teacher.name")

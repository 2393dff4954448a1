"""What was exported, compared with what was trained: the run is loaded as it trained, then the artefact by a program
that runs it.
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.config.tree import Config
from luthier.errors import RunError
from luthier.export.compressed.types import TYPES as COMPRESSED
from luthier.export.gguf.llama import NEEDED, installed
from luthier.export.job import Job, Written
from luthier.export.onnx import write as onnx
from luthier.export.verify.engines import compressed, peft
from luthier.export.verify.engines._torch import TorchModel
from luthier.export.verify.engines.compressed import InCompressedTensors, InOwnReader
from luthier.export.verify.engines.llama_cpp import InLlamaCpp
from luthier.export.verify.engines.onnx import InOnnxRuntime
from luthier.export.verify.engines.peft import InPeft
from luthier.export.verify.engines.transformers import InTransformers
from luthier.export.verify.verdict import Trained, Verdict, judge, table, trained_by
from luthier.models.base import base_folder
from luthier.models.head_files import read_head
from luthier.models.inference import load_for_inference
from luthier.models.peft_adapters.attach import CONFIG_NAME
from luthier.models.quantised.chosen import chosen
from luthier.runs.folder import RunFolder
from luthier.training.own_prompts import own_prompts

if TYPE_CHECKING:
    from luthier.export.verify.engine import Engine
    from luthier.export.verify.explain import PlainEngine

FOLDER = "verification"
UNVERIFIED = "unverified"
ANSWER = 32
"""Tokens of the longest answer that is compared."""
PROMPTS = 8
LORA = "gguf-lora"
SEVERAL = "merged", "adapter", "onnx", LORA
"""Forms that are no types: neither of a GGUF with a whole model nor of compressed-tensors."""


def verify_export(
    config: Config,
    folder: RunFolder,
    artefact: Path,
    form: str,
    *,
    whole: Path | None = None,
    base: str = "trained",
    prompts: int = PROMPTS,
    say: Callable[[str], None] = print,
) -> Verdict:
    """Compares an artefact with the run's model, tells the verdict, and writes it to `verification/` in the run.

    Args:
        form: `merged`, `adapter`, `onnx`, `gguf-lora`, a type of a GGUF file, or of compressed-tensors (`gptq-int4`).
        whole: the folder that the artefact is a part of, to be marked if it is another model; absent: itself.
        base: as `--base` of `luthier export`: which base weights it was written with.
        prompts: how many are asked.

    Raises RunError if it is not the model that was trained. It then has `.unverified` in its name.
    """
    trained = ask_trained(config, folder, form, base, prompts)
    try:
        verdict = judge(trained, artefact, form, *engines_for(config, trained, artefact, form))
    except Exception:
        _mark(whole or artefact)  # a program that cannot load it has not verified it
        raise
    say(table(verdict))
    folder.write_json(folder.path / FOLDER / f"{_called(form)}.json", verdict.to_json())
    if not verdict.same:
        raise RunError(
            f"what was written is not the model that was trained ({'; '.join(verdict.faults)}). It is kept as "
            f"{_mark(whole or artefact)} to be looked at; do not use it."
        )
    return verdict


def verify_written(
    job: Job, written: Written, prompts: int = PROMPTS, say: Callable[[str], None] = print
) -> Verdict | str:
    """`verify_export` of what a form wrote; where there is nothing to compare, the reason in words."""
    if read_head(job.folder.model if job.whole else job.folder.adapter) is not None:
        return "this model scores and writes no text"
    form = form_of(written)
    if form is None:
        return "there is no program here that runs this form by itself"
    if form == "adapter" and not peft.installed():
        return peft.NEEDED
    if form == "onnx" and not onnx.installed("onnxruntime"):
        return f"the graph can be run with {onnx.NEEDED}"
    if form == LORA and not installed():
        return f"the file can be run with {NEEDED}"
    return verify_export(
        job.config,
        job.folder,
        written.weights,
        form,
        whole=written.path,
        base="original" if form == LORA else job.base,  # a base that was stored in few bits is no GGUF
        prompts=prompts,
        say=say,
    )


def form_of(written: Written) -> str | None:
    """The form of what was written, as `verify_export` takes it; None if nothing runs it by itself."""
    if written.weights.is_dir():
        if written.kind is not None:
            return written.kind
        if (written.weights / onnx.GRAPH).is_file():
            return "onnx"
        return "adapter" if (written.weights / CONFIG_NAME).is_file() else "merged"
    if written.weights.suffix != ".gguf":
        return None
    from gguf import GGUFReader

    field = GGUFReader(written.weights).fields.get("general.type")
    return LORA if field is not None and field.contents() == "adapter" else written.kind


def ask_trained(config: Config, folder: RunFolder, form: str, base: str, number: int) -> Trained:
    """What the run's model says in fp32, as it was trained: beside the same stored weights, rounded if it learned for
    the type that is written."""
    rounded = config.qat is not None and config.qat.name == form
    loaded = load_for_inference(
        str(folder.path), device="cpu", dtype="float32", stored=base == "trained", rounded=rounded
    )
    asked = own_prompts(config, loaded.tokenizer, loaded.template, number)
    with TorchModel(loaded.model, loaded.tokenizer) as model:
        trained = trained_by(model, loaded.model.config, asked, ANSWER, loaded.eos_token_ids)
    del loaded, model
    gc.collect()
    return trained


def engines_for(
    config: Config, trained: Trained, artefact: Path, form: str
) -> "tuple[Callable[[], Engine], Callable[[], Engine] | None, Callable[[], PlainEngine] | None]":
    """What loads the artefact, what loads it decoded, and what loads it in the engine without that one's own rounding;
    the latter two for a second look, where there is such a thing."""
    if form == "merged":
        return lambda: InTransformers(artefact), None, None
    if form == "adapter":
        return lambda: InPeft(base_folder(config), artefact, chosen(config)), None, None
    if form == "onnx":
        return lambda: InOnnxRuntime(artefact), None, None
    if form == LORA:
        from luthier.export.verify.engines.llama_adapter import BesideBase

        return lambda: BesideBase(artefact, base_folder(config), trained.longest, trained.config), None, None
    if _few_bits(form) is not None:
        if not compressed.installed():
            return lambda: InOwnReader(artefact), None, None
        rounds = _few_bits(form) == "fp8"  # activations, too: more than the decoded folder says
        return lambda: InCompressedTensors(artefact), None if rounds else lambda: InOwnReader(artefact), None
    from luthier.export.verify.engines.gguf_reader import InReader

    def decoded() -> "Engine":
        return InReader(artefact, trained.config)

    if not installed():
        return decoded, None, None
    from luthier.export.verify.engines.llama_plain import InPlainLlamaCpp

    given = artefact, trained.longest, trained.config
    return lambda: InLlamaCpp(*given), decoded, lambda: InPlainLlamaCpp(*given)


def _few_bits(form: str) -> str | None:
    """The type of compressed-tensors that a form is; None if it is none."""
    kind = form.rpartition("-")[2]
    return kind if kind in COMPRESSED else None


def _called(form: str) -> str:
    """The form as files in the run are called by it."""
    if form in SEVERAL or "-" in form:
        return form
    return f"compressed-{form}" if form in COMPRESSED else f"gguf-{form}"


def _mark(artefact: Path) -> Path:
    """Gives an artefact a name that says that it was not verified, and returns that."""
    start, end = (artefact.stem, artefact.suffix) if artefact.is_file() else (artefact.name, "")
    other, number = artefact.with_name(f"{start}.{UNVERIFIED}{end}"), 2
    while other.exists():
        other, number = artefact.with_name(f"{start}.{UNVERIFIED}-{number}{end}"), number + 1
    return artefact.rename(other) if artefact.exists() else artefact

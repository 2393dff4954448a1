"""One variant of a model measured on held-out rows, by the program that computes it."""

from collections.abc import Sequence
from pathlib import Path

from luthier.evaluate.compare import Measured
from luthier.evaluate.llama_file import LlamaFile
from luthier.evaluate.task import Keep, Progress, evaluate
from luthier.evaluate.variants import LLAMA_CPP, Variant
from luthier.models.inference import load_for_inference


def measure(
    variant: Variant,
    data: Sequence[str | Path],
    *,
    metric_names: Sequence[str] | None = None,
    num_rows: int | None = None,
    answer_tokens: int = 128,
    folder: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Measured:
    """Loads a variant and measures it; frees it again.

    Args:
        folder: what is found of each row is kept there, and gone on with; None: nowhere.
        offline: refuse the network.
        metric_names, num_rows, answer_tokens, progress: as `evaluate` takes them, with its errors.
    """
    if variant.engine == LLAMA_CPP:
        loaded = LlamaFile.load(Path(variant.name))
    else:
        loaded = load_for_inference(variant.name, adapter=variant.trained, offline=offline)
    keep = Keep(folder, variant.label, variant.key(offline)) if folder else None
    found = evaluate(
        loaded,
        data,
        metric_names=metric_names,
        num_rows=num_rows,
        answer_tokens=answer_tokens,
        progress=progress,
        keep=keep,
    )
    return Measured(variant.label, variant.engine, variant.size(offline), found)

"""The folder itself."""

import json
import shutil
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from luthier.export.from_run import gguf_of_folder, left_exact, model_folder
from luthier.export.gguf.known import architecture
from luthier.export.gguf.types import TYPES
from luthier.export.gguf.write import planned_sizes
from luthier.export.job import Job, Written
from luthier.export.ollama.modelfile import Modelfile
from luthier.export.ollama.of_run import config_of, modelfile_of_run, tokenizer_of
from luthier.export.pi import scripts, self_test
from luthier.export.pi.answers import TOKENS, answers, questions
from luthier.export.pi.predict import Prediction, decoder_of, predict, read_per_token
from luthier.runs.atomic import atomic_folder

LEAST = 0.5
"""Share of an answer that must be the same from its start, on average: rounding of activations changes some words."""


def write_pi(job: Job, target: Path, kind: str) -> Written:
    """GGUF, Modelfile, scripts, prediction and self-test in one folder.

    Raises:
        ConfigError: it does not fit into the Raspberry Pi's memory.
        ModelError: llama.cpp or Ollama cannot run the model as it was trained.
    """
    name = job.folder.path.absolute().name
    file = f"{name}-{kind}.gguf"
    modelfile_of_run(job, file)  # what cannot be said there is refused before the model is merged
    with model_folder(job, target) as folder:
        if kind in TYPES:  # of llama.cpp's own types the sizes are known afterwards
            planned = planned_sizes(folder, kind, left_exact(job.config))
            _predicted(job, planned, sum(size for _, size in planned))
        with atomic_folder(target, replace=False) as partial:
            types = gguf_of_folder(job, folder, partial / file, kind)
            found = prediction(job, partial / file)
            told = modelfile_of_run(job, file, most=found.context)
            (partial / "Modelfile").write_text(told.text, encoding="utf-8")
            test = {
                "file": file,
                "tokens": TOKENS,
                "least": LEAST,
                "cases": _cases(job, partial / file, told),
            }
            test["predicted_tokens_per_second"] = found.speed
            _json(partial / "self_test.json", test)
            _json(partial / "prediction.json", found.as_json())
            shutil.copyfile(self_test.__file__, partial / "self_test.py")
            _script(partial / "run-llama.cpp.sh", scripts.llama_script(file, found.context))
            _script(partial / "run-ollama.sh", scripts.ollama_script(name.lower()))
    notes = (
        *types,
        *told.notes,
        f"Predicted for a Raspberry Pi 5: {found.memory / 1e9:.2f} GB with {found.context} tokens of context, "
        f"{found.speed:.1f} tokens a second.",
        "Next: copy the folder there and run python3 self_test.py",
    )
    return Written(
        "folder for the Raspberry Pi", target, target / file, kind, notes, scripts.page(file, kind, found)
    )


def prediction(job: Job, file: Path) -> Prediction:
    """Of a GGUF of the run's model. Errors: see `predict`."""
    sizes = [(one.name, int(one.n_bytes)) for one in GGUFReader(file).tensors]
    return _predicted(job, sizes, file.stat().st_size)


def _predicted(job: Job, sizes: list[tuple[str, int]], size: int) -> Prediction:
    """From the names and bytes of the tensors, and the bytes of the file."""
    config: Any = config_of(job)
    facts = architecture(config).facts(config)
    count = facts.get("expert_count")
    experts = (int(facts["expert_used_count"]), int(count)) if count else None
    return predict(decoder_of(facts, _windows(config)), size, read_per_token(sizes, experts))


def _windows(config: Any) -> tuple[int | None, ...]:
    """How far each layer sees."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds)


def _cases(job: Job, file: Path, told: Modelfile) -> list[dict[str, Any]]:
    tokenizer = tokenizer_of(job)
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    cut = tokenizer.bos_token if adds_bos else ""
    variables = job.config.data.template_args
    asked = questions(job.folder)
    return answers(file, config_of(job), tokenizer, asked, variables, told.stops, cut=cut)


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)

"""The text of a Modelfile: which file, the prompt's template, what ends an answer, the context, how to sample."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.errors import ModelError
from luthier.export.ollama.template import Made, made_template

SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Of generation_config.json, by what Ollama calls it."""


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says."""

    text: str
    stops: tuple[str, ...]
    """Texts that end an answer."""
    notes: tuple[str, ...]
    made: Made


def modelfile(
    tokenizer: Any,
    folder: Path,
    file: str,
    context: int,
    *,
    now: datetime,
    variables: Mapping[str, Any] | None = None,
) -> Modelfile:
    """What Ollama needs beside a GGUF file to run the model of a folder as it was trained.

    Args:
        tokenizer: the folder's, with its chat template.
        folder: the model in Hugging Face's layout.
        file: name of the GGUF file beside the Modelfile.
        context: tokens that the model can read.
        now: the day that a template with a clock is told.
        variables: what else the template is told.

    Raises ModelError where the model has no chat template, or one that Ollama's language cannot write.
    """
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise ModelError(
            f"{folder} has no chat template, so there is nothing to tell Ollama how to ask it. Train with "
            "data.template, or export gguf:TYPE and write a Modelfile by hand."
        )
    ids = tokenizer("a").input_ids
    adds_bos = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    made = made_template(source, now=now, bos=bos, adds_bos=adds_bos, eos=eos, variables=variables)
    generation = _read(folder / "generation_config.json")
    stops = _stops(tokenizer, generation, made)
    lines = [
        f"FROM ./{file}",
        f"TEMPLATE {_quoted(made.source)}",
        *(f"PARAMETER stop {_quoted(stop)}" for stop in stops),
        f"PARAMETER num_ctx {context}",
        *(
            f"PARAMETER {name} {generation[key]}"
            for key, name in SAMPLING.items()
            if generation.get(key) is not None
        ),
    ]
    return Modelfile("\n".join(lines) + "\n", tuple(stops), made.notes, made)


def _stops(tokenizer: Any, generation: Mapping[str, Any], made: Made) -> list[str]:
    """Tokens that end an answer: of the generation settings, the tokenizer, and what the template puts there."""
    ends = generation.get("eos_token_id")
    ids: Sequence[int] = [ends] if isinstance(ends, int) else ends or ()
    found = [str(tokenizer.convert_ids_to_tokens(number)) for number in ids]
    found += [tokenizer.eos_token] if tokenizer.eos_token else []
    after = made.shape.answer_after.strip()
    found += [token for token in tokenizer.get_added_vocab() if after.startswith(token)]
    return list(dict.fromkeys(found))


def _quoted(text: str) -> str:
    """As a Modelfile has texts: nothing in them is escaped."""
    if '"' not in text and "\n" not in text:
        return f'"{text}"'
    if '"""' in text or text.endswith('"'):
        raise ModelError(
            'the chat template holds """, which a Modelfile cannot say. Export gguf:TYPE instead.'
        )
    return f'"""{text}"""'


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

"""What the model of a GGUF answers, computed here from the numbers that the file decodes to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.export.verify.engines.gguf_reader import InReader
from luthier.runs.folder import RunFolder
from luthier.runs.samples import read_samples

OWN = (
    "What can you do?",
    "Write one sentence about the sea.",
    "Name three colours.",
    "How much is twelve and thirty?",
)
CASES, TOKENS = 4, 24


def questions(folder: RunFolder) -> list[str]:
    """Held-out questions of the run; where it kept none, a few of ours."""
    found = read_samples(folder.samples) if folder.samples.is_file() else []
    asked = [next(iter(pair.values())).prompt for pair in found]
    kept = [text.strip() for text in asked if text.strip() and len(text) < 2000]
    return (kept or list(OWN))[:CASES]


def answers(
    file: Path,
    config: Any,
    tokenizer: Any,
    asked: Sequence[str],
    variables: Mapping[str, Any],
    stops: Sequence[str],
    *,
    cut: str,
) -> list[dict[str, Any]]:
    """What the file's model says to each question, likeliest token by likeliest token.

    Args:
        config: transformers' configuration of the model.
        variables: what else the chat template is told.
        stops: texts of the tokens that end an answer.
        cut: the text of a first token that the engine adds by itself.
    """
    ends = {int(tokenizer.convert_tokens_to_ids(stop)) for stop in stops}
    found = []
    with InReader(file, config) as model:
        for question in asked:
            messages = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **variables
            )
            ids = tokenizer(prompt, add_special_tokens=False).input_ids
            written = model.greedy(ids, TOKENS, ends)
            answer = tokenizer.decode([one for one in written if one not in ends], skip_special_tokens=True)
            found.append({"messages": messages, "prompt": prompt.removeprefix(cut), "answer": answer})
    return found

"""Writes down how long the rows of real data sets are: `python -m bench.record_lengths FOLDER`.

FOLDER holds alpaca_en_demo.json, dpo_en_demo.json and gsm8k_train.jsonl. Kept are lengths only, in tokens of
SmolLM2 with its chat template: [prompt, answer] a row, for preferences [prompt, chosen, rejected]; and how many
first tokens all rows have in common (the template's system prompt). No text.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_ROWS = 1000
"""Rows kept of each data set: the first ones."""

Turn = tuple[str, str]


def alpaca(row: dict[str, Any]) -> tuple[list[Turn], list[str]]:
    """A row of Alpaca: prompt turns and its answer."""
    question = row["instruction"] + ("\n\n" + row["input"] if row["input"] else "")
    return [("user", question)], [row["output"]]


def gsm8k(row: dict[str, Any]) -> tuple[list[Turn], list[str]]:
    """A row of GSM8K."""
    return [("user", row["question"])], [row["answer"]]


def dpo(row: dict[str, Any]) -> tuple[list[Turn], list[str]]:
    """A row of the preference data: prompt turns, chosen and rejected answer."""
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    turns = [(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
    return turns, [row["chosen"]["value"], row["rejected"]["value"]]


SOURCES = {
    "alpaca": ("alpaca_en_demo.json", alpaca),
    "gsm8k": ("gsm8k_train.jsonl", gsm8k),
    "dpo": ("dpo_en_demo.json", dpo),
}


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON list or of JSON lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        yield from json.loads(text)
    else:
        yield from map(json.loads, text.splitlines())


def parts_of(tokenizer: Any, turns: list[Turn], answers: list[str]) -> list[list[int]]:
    """Ids of the prompt with the template's opening of the answer, then of each answer and its end of turn."""
    messages = [{"role": role, "content": text} for role, text in turns]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parts = [prompt, *(answer + "<|im_end|>\n" for answer in answers)]
    return [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]


def common_beginning(prompts: list[list[int]]) -> int:
    """How many first tokens all prompts share."""
    shortest, num = min(prompts, key=len), 0
    while num < len(shortest) and all(prompt[num] == shortest[num] for prompt in prompts):
        num += 1
    return num


def main(folder: Path) -> None:
    """Measures each data set in `folder` and writes its lengths next to this file."""
    from luthier.models.load import load_tokenizer

    tokenizer = load_tokenizer("demo:smollm2-135m")
    for name, (file, convert) in SOURCES.items():
        rows = [row for row, _ in zip(rows_of(folder / file), range(MOST_ROWS), strict=False)]
        parts = [parts_of(tokenizer, *convert(row)) for row in rows]
        lengths = [[len(part) for part in row] for row in parts]
        common = common_beginning([row[0] for row in parts])
        about = f"{file}, the first {len(lengths)} rows, SmolLM2's tokenizer and chat template"
        lines = ",\n".join(json.dumps(lengths[i : i + 20])[1:-1] for i in range(0, len(lengths), 20))
        content = f'{{"about": {json.dumps(about)},\n"common": {common},\n"lengths": [\n{lines}\n]}}\n'
        Path(__file__).with_name("lengths").joinpath(f"{name}.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

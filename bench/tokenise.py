"""How fast do conversations become tokens with targets, beside the tokenizer alone on the same text?

    python bench/tokenise.py                                   ChatML and a tokenizer trained here
    python bench/tokenise.py --tokenizer tokenizer.json --template chat.jinja
    python bench/tokenise.py --texts FOLDER                    words from other texts (.md, .py, .txt)

Both sides end with the ids in hand. `tokenizers.encode_batch` gets texts that are rendered already; ours gets the
conversations, and renders them, finds what is learned and makes examples with weights besides. A second figure is
the time of one conversation of 80 turns over that of one plain rendering by transformers and one tokenisation.
Rounds of the two sides alternate, and the fastest of each counts: what slows a round down is not the code. Where
other programs run at the same time, the figures by CPU time are the fairer ones.
`--out FOLDER` takes the JSON (bench/results otherwise); the status is 1 if a goal is missed.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.data.chat import ChatTemplate
from luthier.data.conversation import Conversation, conversation_from
from luthier.data.encode import EncodedRow, EncodeOptions, RowEncoder
from luthier.runs.environment import describe_environment

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
RATE_GOAL, TURNS_GOAL, TURNS = 0.9, 1.5, 80
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read_texts(folder: Path) -> list[str]:
    """The texts below a folder, in a fixed order, a hundred at most."""
    files = sorted(file for kind in ("*.md", "*.py", "*.txt") for file in folder.rglob(kind))
    texts = [file.read_text(encoding="utf-8", errors="ignore") for file in files]
    return [text for text in texts if len(text) > 200][:100]


def train_tokenizer(texts: list[str], size: int = 16_000) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as many models have it, trained on these texts."""
    backend = Tokenizer(models.BPE())
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), levels])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def conversations(
    texts: list[str], num_rows: int, seed: int = 0, turns: int | None = None
) -> list[Conversation]:
    """Conversations of pieces of the texts: 2 to 8 messages with a median of 100 words, or so many turns of 30."""
    draw = random.Random(seed)
    words = [word for text in texts for word in text.split(" ") if word.strip() and "<|" not in word]
    rows = []
    for _ in range(num_rows):
        messages = []
        for number in range(turns or 2 * draw.randint(1, 4)):
            length = 30 if turns else max(5, round(draw.lognormvariate(4.6, 0.7)))
            start = draw.randrange(len(words) - length)
            text = " ".join(words[start : start + length]).strip()
            messages.append({"role": ("user", "assistant")[number % 2], "content": text})
        rows.append(conversation_from(messages))
    return rows


def fastest(rounds: int, *sides: Callable[[], Any]) -> list[tuple[float, float]]:
    """For each side the least seconds by the clock and the least of all cores' work, the sides taking turns."""
    best = [(float("inf"), float("inf"))] * len(sides)
    for _ in range(rounds):
        for number, side in enumerate(sides):
            clock, work = time.perf_counter(), time.process_time()
            side()
            spent = time.perf_counter() - clock, time.process_time() - work
            best[number] = min(best[number][0], spent[0]), min(best[number][1], spent[1])
    return best


def measure_rate(tokenizer: PreTrainedTokenizerFast, rows: list[Conversation], rounds: int) -> dict[str, Any]:
    """Tokens per second of both sides."""
    template = ChatTemplate(tokenizer)
    encoder = RowEncoder(tokenizer, template, EncodeOptions(1_000_000))
    texts = [template.render(row).text for row in rows]
    backend: Any = tokenizer.backend_tokenizer

    def plain() -> list[list[int]]:
        return [one.ids for one in backend.encode_batch(texts, add_special_tokens=False)]

    ours = encoder.encode(rows)
    assert [
        row.examples[0].segments[0].ids.tolist() for row in ours if isinstance(row, EncodedRow)
    ] == plain(), "both sides give the same ids"
    num_tokens = sum(len(ids) for ids in plain())
    base, own = fastest(rounds, plain, lambda: encoder.encode(rows))
    return {
        "rows": len(rows),
        "tokens": num_tokens,
        "encode_batch_tokens_per_s": round(num_tokens / base[0]),
        "luthier_tokens_per_s": round(num_tokens / own[0]),
        "rate": round(base[0] / own[0], 3),
        "rate_by_cpu_time": round(base[1] / own[1], 3),
    }


def measure_turns(tokenizer: PreTrainedTokenizerFast, row: Conversation, rounds: int) -> dict[str, Any]:
    """One long conversation beside one rendering by transformers and one tokenisation."""
    template = ChatTemplate(tokenizer)
    messages = template.template_messages(row)

    def plain() -> Any:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    base, own = fastest(rounds, plain, lambda: template.encode(row))
    return {
        "turns": len(row.messages),
        "plain_ms": round(base[0] * 1e3, 3),
        "luthier_ms": round(own[0] * 1e3, 3),
        "ratio": round(own[0] / base[0], 3),
        "ratio_by_cpu_time": round(own[1] / base[1], 3),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument("--template", type=Path, help="a Jinja file; ChatML otherwise")
    parser.add_argument("--texts", type=Path, default=ROOT / "src", help="a folder of texts")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    texts = read_texts(given.texts)
    tokenizer = (
        PreTrainedTokenizerFast(tokenizer_file=str(given.tokenizer), eos_token="<|im_end|>")
        if given.tokenizer
        else train_tokenizer(texts)
    )
    tokenizer.chat_template = given.template.read_text(encoding="utf-8") if given.template else CHATML
    many = measure_rate(tokenizer, conversations(texts, given.rows), given.rounds)
    long = measure_turns(tokenizer, conversations(texts, 1, turns=TURNS)[0], 3 * given.rounds)
    reached = many["rate"] >= RATE_GOAL and long["ratio"] <= TURNS_GOAL
    result = {
        "template": given.template.name if given.template else "chatml",
        "many": many,
        "long": long,
        "reached": reached,
        "environment": describe_environment(),
    }
    print(json.dumps({name: result[name] for name in ("template", "many", "long", "reached")}, indent=2))
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"tokenise-{result['template'].removesuffix('.jinja')}-{date.today().isoformat()}.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())

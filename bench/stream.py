"""How soon does training begin over millions of rows, does memory grow, and is a killed run the same run?

    python -m bench.stream start                4 million chats: seconds until the first step, memory while it goes on
    python -m bench.stream kill                 2 million rows, killed at three random moments and resumed
    python -m bench.stream kill --rows 100000   smaller

The model is a random one of a few thousand weights, so what is measured is the data's part. `--out FOLDER` takes
the JSON (bench/results otherwise); the status is 1 if a goal is missed.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from luthier.runs.environment import describe_environment
from luthier.runs.metrics import read_metrics

RESULTS = Path(__file__).with_name("results")
SECONDS_TO_START = 60.0
SECONDS_BETWEEN_REPORTS = 15.0
GROWTH = 1.15
"""Memory in the last third of the steps, over that in the first third after the start."""
WORDS = "red green blue one two three small large cat dog bird house river stone".split()  # noqa: SIM905


def write_chats(file: Path, rows: int) -> None:
    """Questions whose answer is their words in reverse."""
    draw = random.Random(0)
    with file.open("w") as stream:
        for _ in range(rows):
            words = draw.choices(WORDS, k=draw.randint(2, 12))
            turns = [("user", words), ("assistant", words[::-1])]
            messages = [{"role": role, "content": " ".join(said)} for role, said in turns]
            stream.write(json.dumps({"messages": messages}) + "\n")


def write_tokens(file: Path, rows: int) -> None:
    """Rows of 4 to 7 token ids, no two alike."""
    draw = random.Random(1)
    with file.open("w") as stream:
        for row in range(rows):
            ids = [row % 251, row // 251 % 251, row // 63001, *draw.randbytes(4)[: 1 + row * 7919 % 4]]
            stream.write(f'{{"input_ids": {ids}}}\n')


def save_model(folder: Path) -> Path:
    """A random model of the Llama family, with a tokenizer of bytes and a template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "max_position_embeddings": 512}
    config = AutoConfig.for_model("llama", **shape, **size, eos_token_id=tokenizer.eos_token_id)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_config(
    folder: Path,
    name: str,
    file: Path,
    *,
    train: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    save_every: int = 20,
) -> Path:
    """A run over the file as a stream."""
    values = {
        "model": {"name": str(folder / "model"), "device": "cpu", "dtype": "float32"},
        "data": {
            "path": str(file),
            "streaming": True,
            "cache": False,
            "share_prefixes": False,
            "max_length": 256,
            **(data or {}),
        },
        "train": {"tokens_per_step": 65536, "tokens_per_micro_batch": 8192, **(train or {})},
        "eval": {"samples": 0},
        "checkpoint": {"every": save_every},
        "run": {"name": name, "root": str(folder / "runs")},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values))
    return path


def start_run(config: Path, *flags: str) -> subprocess.Popen[bytes]:
    """The run, as a user would start it."""
    command = [sys.executable, "-m", "luthier", "train", str(config), *flags]
    log = config.with_suffix(".log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def steps_done(run: Path, since: float = 0.0) -> int:
    """The last step in the run's metrics that was written since a moment."""
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return max((row["step"] for row in rows if row["kind"] == "train" and row["time"] >= since), default=0)


def memory_of(pid: int) -> int:
    """Bytes that a process holds in memory."""
    fields = Path(f"/proc/{pid}/status").read_text().split("RssAnon:")
    return int(fields[1].split()[0]) * 1024


def watch(process: subprocess.Popen[bytes], run: Path) -> Iterator[int]:
    """The last step that the process has done, a few times a second, until it ends; said now and then."""
    told = began = time.monotonic()
    since = time.time()
    while process.poll() is None:
        done = steps_done(run, since)
        yield done
        if time.monotonic() - told >= SECONDS_BETWEEN_REPORTS:
            told = time.monotonic()
            say(f"{run.name}: {done} steps, {told - began:.0f} s since it was started")
        time.sleep(0.2)


def say(line: str) -> None:
    """Progress, for whoever waits."""
    print(line, file=sys.stderr, flush=True)


def measure_start(folder: Path, rows: int, steps: int) -> dict[str, Any]:
    """Seconds until the first step, and memory over the steps after it."""
    write_chats(folder / "chats.jsonl", rows)
    config = write_config(folder, "start", folder / "chats.jsonl", train={"epochs": 1})
    began, seconds, held = time.monotonic(), 0.0, list[int]()
    process = start_run(config)
    for done in watch(process, folder / "runs" / "start"):
        if done and not held:
            seconds = time.monotonic() - began
        if done:
            held.append(memory_of(process.pid))
        if done >= steps:
            process.send_signal(signal.SIGTERM)
            process.wait()
    third = max(1, len(held) // 3)
    growth = max(held[-third:]) / max(held[:third]) if held else float("nan")
    reached = 0 < seconds <= SECONDS_TO_START and growth <= GROWTH
    facts = {"seconds_to_first_step": round(seconds, 1), "memory_growth": round(growth, 3), "steps": steps}
    return {"rows": rows, **facts, "bytes": (folder / "chats.jsonl").stat().st_size, "reached": reached}


def measure_kill(folder: Path, rows: int, seed: int) -> dict[str, Any]:
    """Whether a run that is killed at three random moments has the losses of one that was not."""
    write_tokens(folder / "tokens.jsonl", rows)
    say(f"{rows} rows are written")
    # One process prepares rows while the other learns; a few dozen large steps, so that time goes to the rows.
    micro = max(256, min(8192, rows // 200))
    train = {"tokens_per_step": 32 * micro, "tokens_per_micro_batch": micro}
    data = {"workers": 1, "window_rows": min(16384, max(1000, rows // 40))}

    def config(name: str) -> Path:
        return write_config(folder, name, folder / "tokens.jsonl", train=train, data=data, save_every=3)

    began = time.monotonic()
    run_to_the_end(config("straight"), folder / "runs" / "straight")
    losses = losses_of(folder / "runs" / "straight")
    seconds = time.monotonic() - began
    killed, draw = folder / "runs" / "killed", random.Random(seed)
    moments = sorted(draw.sample(range(1, len(losses) - 1), 3))
    began, reached = time.monotonic(), list[int]()
    for number, moment in enumerate(moments):
        process = start_run(config("killed"), *(["--resume"] if number else []))
        for done in watch(process, killed):
            if done >= moment:
                time.sleep(draw.random())  # anywhere in a step, in a save, or between
                process.kill()
        if process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"the run ended before it was killed; see {killed.name}.log")
        reached.append(steps_done(killed))
        say(f"killed after {reached[-1]} of {len(losses)} steps")
    run_to_the_end(config("killed"), killed, "--resume")
    ledger = json.loads((killed / "ledger.json").read_text())["train"]
    same = losses_of(killed) == losses
    return {
        "rows": rows,
        "rows_in_ledger": ledger["read"],
        "bytes": (folder / "tokens.jsonl").stat().st_size,
        "steps": len(losses),
        "killed_after_steps": reached,
        "same_losses": same,
        "seconds_of_straight_run": round(seconds, 1),
        "seconds_of_killed_run": round(time.monotonic() - began, 1),
        "reached": same and ledger["read"] == rows,
    }


def run_to_the_end(config: Path, run: Path, *flags: str) -> None:
    """A run that nothing happens to."""
    process = start_run(config, *flags)
    for _ in watch(process, run):
        pass
    if process.returncode:
        raise RuntimeError(f"the run failed:\n{config.with_suffix('.log').read_text()[-2000:]}")


def losses_of(run: Path) -> list[tuple[int, float]]:
    """The loss of every step."""
    return [
        (row["step"], row["loss"]) for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "train"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["start", "kill"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="luthier-stream-"))
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "start": lambda: measure_start(folder, arguments.rows or 4_000_000, arguments.steps),
        "kill": lambda: measure_kill(folder, arguments.rows or 2_000_000, arguments.seed),
    }
    try:
        save_model(folder / "model")
        values = {"what": f"stream-{arguments.what}", **measure[arguments.what]()}
    except BaseException:
        print(f"what was made is in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    print(json.dumps(values, indent=1))
    values["environment"] = describe_environment()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"stream-{arguments.what}-{date.today().isoformat()}.json"
    file.write_text(json.dumps(values, indent=1) + "\n")
    return 0 if values["reached"] else 1


if __name__ == "__main__":
    sys.exit(main())

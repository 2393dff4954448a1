"""The worked example of pre-training: trained through the command line on rows of FineWeb-Edu's schema."""

import json
import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chat_samples import byte_level
from luthier.cli.main import main
from luthier.config.load import load_config
from luthier.runs.metrics import read_metrics
from tiny_models import tiny_qwen3
from tiny_runs import WORDS

RECIPE = Path(__file__).resolve().parents[2] / "examples" / "qwen3-0.6b-fineweb-edu.yaml"
SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "id": pa.string(),
        "dump": pa.string(),
        "url": pa.string(),
        "file_path": pa.string(),
        "language": pa.string(),
        "language_score": pa.float64(),
        "token_count": pa.int64(),
        "score": pa.float64(),
        "int_score": pa.int64(),
    }
)


def write_pages(path: Path, num_rows: int, longest: int = 40) -> Path:
    """Pages of a small language, some of them longer than a block."""
    draw = random.Random(0)
    rows = []
    for number in range(num_rows):
        words = [draw.choice(WORDS) for _ in range(draw.randint(5, longest if number % 9 else 9 * longest))]
        rows.append(
            {
                "text": " ".join(words) + ".",
                "id": f"<urn:uuid:{number:08d}>",
                "dump": "CC-MAIN-2024-10",
                "url": f"https://example.org/{number}",
                "file_path": "crawl/segment.warc.gz",
                "language": "en",
                "language_score": 0.97,
                "token_count": len(words),
                "score": 3.2,
                "int_score": 3,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=64)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of Qwen3's shape without a chat template, and pages."""
    folder = tmp_path_factory.mktemp("fineweb")
    tokenizer = byte_level()
    tokenizer.chat_template = None
    model = tiny_qwen3(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=4096
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_pages(folder / "pages.parquet", 260)
    return folder


def test_the_recipe_names_what_it_says() -> None:
    config = load_config(RECIPE)
    assert config.model.name == "Qwen/Qwen3-0.6B-Base"
    assert config.data.path == ["hf:HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet"]
    assert config.data.streaming and config.schedule.name == "wsd" and config.lora is None


@pytest.mark.parametrize("mask", ["true", "false"])
def test_the_recipe_trains_on_rows_of_its_schema(folder: Path, mask: str) -> None:
    name = f"mask-{mask}"
    arguments = [
        "train",
        str(RECIPE),
        f"model.name={folder / 'model'}",
        f"data.path={folder / 'pages.parquet'}",
        "data.cache=false",
        f"data.document_mask={mask}",
        "data.workers=0",
        "train.max_tokens=80000",
        "train.tokens_per_step=8192",
        "train.tokens_per_micro_batch=4096",
        f"run.root={folder}",
        f"run.name={name}",
        "optim.lr=1e-2",
    ]
    assert main(arguments) == 0
    rows = read_metrics(folder / name / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    held_out = [row for row in rows if row["kind"] == "eval"][-1]
    assert train[-1]["num_tokens"] >= 80_000 and train[-1]["loss"] < train[0]["loss"] - 0.5
    ledger = json.loads((folder / name / "ledger.json").read_text())["train"]
    assert ledger["read"] == 260 and ledger["kept"] == 60 and ledger["set_aside"] == 200  # eval_rows
    assert held_out["perplexity"] == pytest.approx(math.exp(held_out["loss"]), rel=1e-4)
    assert (
        0 < held_out["bits_per_byte"] < 8 and "bits per byte" in (folder / name / "report.html").read_text()
    )

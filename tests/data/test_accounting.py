"""Law 7: kept + truncated + dropped = read, over rows of any kind and in every way that rows are read."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_samples import CHATML, byte_level
from luthier.config.data_section import CleanSection, SetSection
from luthier.data.chat import ChatTemplate
from luthier.data.encode import EncodeOptions
from luthier.data.ledger import Ledger
from luthier.data.pipeline import Plan, Recipe
from luthier.data.prepare import prepare_plan
from luthier.data.stream import StreamSource
from luthier.errors import DataError
from stream_parts import steps_of, token_stream

TOKENIZER = byte_level()
TOKENIZER.chat_template = CHATML
TEMPLATE = ChatTemplate(TOKENIZER)
OVERLONG = ["drop", "truncate_oldest_turns", "truncate_response", "split"]

TEXTS = st.sampled_from(["", "a", "hello there", "x" * 70, "<|im_end|>", "\n", "  b "])
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "human", "nobody"])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS | st.none() | st.integers()}), max_size=4
)
PLAIN = st.none() | st.booleans() | st.integers() | TEXTS
RECORDS = st.one_of(
    st.fixed_dictionaries({"messages": MESSAGES | PLAIN}),
    st.fixed_dictionaries(
        {"conversations": st.lists(st.fixed_dictionaries({"from": ROLES, "value": TEXTS}))}
    ),
    st.fixed_dictionaries({"instruction": TEXTS, "input": TEXTS, "output": TEXTS | PLAIN}),
    st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS, "label": st.booleans()}),
    st.fixed_dictionaries({"prompt": TEXTS, "chosen": TEXTS | PLAIN, "rejected": TEXTS}),
    st.fixed_dictionaries({"question": TEXTS, "answer": TEXTS}),
    st.fixed_dictionaries({"text": TEXTS | PLAIN}),
    st.fixed_dictionaries({"prompt": TEXTS}),
    st.fixed_dictionaries({"input_ids": st.lists(st.integers(-1, 300), max_size=60) | PLAIN}),
    st.dictionaries(st.sampled_from(["messages", "text", "x", "label", "images"]), PLAIN, max_size=3),
)
LINES = st.lists(RECORDS.map(json.dumps) | st.text(alphabet='{}[]",:ab1 ', max_size=9), max_size=14)


def plan_over(
    folder: Path, lines: list[str], overlong: str = "drop", clean: bool = False
) -> tuple[Plan, int]:
    """What is read of these lines and one good row before them, in two files, and how many rows that is."""
    good = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    files = [folder / "a.jsonl", folder / "b.jsonl"]
    files[0].write_text("".join(line + "\n" for line in [good, *lines[::2]]))
    files[1].write_text("".join(line + "\n" for line in [good, *lines[1::2]]))
    recipe = Recipe(TOKENIZER, EncodeOptions(64, overlong), TEMPLATE)
    sets = tuple(SetSection(path=str(file)) for file in files)
    plan = Plan(sets, recipe, clean=CleanSection(exact_duplicates=clean))
    return plan, 2 + sum(bool(line.strip()) for line in lines)


def checked(ledger: Ledger, num_rows: int) -> Ledger:
    assert ledger.kept + ledger.truncated + ledger.dropped == ledger.read == num_rows
    assert ledger.reasons.total() == ledger.dropped >= ledger.set_aside
    assert all(ledger.examples[reason] for reason in ledger.reasons)
    return ledger


def ledger_at_once(plan: Plan, workers: int = 0) -> Ledger:
    return prepare_plan(plan, max_drop_fraction=1.0, workers=workers).ledger


def ledger_streamed(source: StreamSource) -> tuple[Ledger, list[int]]:
    try:
        rows = [row for step in steps_of(source, total=1) for rows, _, _ in step for row in rows]
        return source.ledger, rows
    finally:
        source.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(LINES, st.sampled_from(OVERLONG), st.booleans(), st.integers(1, 6))
def test_every_row_is_accounted_for_at_once_and_streamed(
    tmp_path: Path, lines: list[str], overlong: str, clean: bool, window: int
) -> None:
    plan, num_rows = plan_over(tmp_path, lines, overlong, clean)
    whole = checked(ledger_at_once(plan), num_rows)
    dataset = prepare_plan(plan, max_drop_fraction=1.0)
    options: Any = {"window_rows": window, "tokens_per_step": 200, "micro_tokens": 64}
    ledger, rows = ledger_streamed(token_stream(plan, tmp_path / "w", **options))
    assert checked(ledger, num_rows) == whole
    assert sorted(rows) == sorted(dataset.row_numbers.tolist()), "packs hold every example once"
    assert len(set(rows)) == whole.usable
    together: list[int] = []
    for rank in range(2):
        one = token_stream(plan, tmp_path / "w", rank=rank, world=2, keep=True, **options)
        ledger, mine = ledger_streamed(one)
        assert ledger == whole
        together += mine
    assert sorted(together) == sorted(rows)


@pytest.mark.parametrize("overlong", ["drop", "split"])
def test_every_row_is_accounted_for_by_processes(tmp_path: Path, overlong: str) -> None:
    draw = random.Random(5)
    kinds: list[Any] = [
        {"text": "word " * 30},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a " * 40}]},
        {"messages": [{"role": "nobody", "content": "q"}]},
        {"question": "q", "answer": "a"},
        {"images": ["x.png"], "messages": []},
        {"prompt": "p", "chosen": "c", "rejected": 3},
    ]
    lines = [json.dumps(draw.choice(kinds)) if draw.random() < 0.9 else "{broken" for _ in range(700)]
    plan, num_rows = plan_over(tmp_path, lines, overlong)
    whole = checked(ledger_at_once(plan), num_rows)
    assert ledger_at_once(plan, workers=2) == whole
    options: Any = {"window_rows": 300, "tokens_per_step": 200, "micro_tokens": 64, "workers": 2}
    assert ledger_streamed(token_stream(plan, tmp_path / "w", **options))[0] == whole


def test_rows_that_no_format_knows_stop_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    plan = Plan(
        (SetSection(path=str(tmp_path / "a.jsonl")),), Recipe(TOKENIZER, EncodeOptions(64, None), TEMPLATE)
    )
    for read in (ledger_at_once, lambda plan: token_stream(plan, tmp_path / "w").first_window()):
        with pytest.raises(DataError, match="no known format has the columns that were found: `x`"):
            read(plan)

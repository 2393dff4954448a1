"""The benchmark of packing runs as one command and tells which goals are reached; its bound is a bound."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import packing
from luthier.data.pack import pack


def test_it_measures_every_distribution_and_writes_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packing.main(["--rows", "20000", "--seeds", "2", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("packing-*.json")
    found = json.loads(path.read_text(encoding="utf-8"))["found"]
    names = [one["lengths"] for one in found]
    printed = capsys.readouterr().out.splitlines()
    assert names == ["chat", "long", "awkward"] == [line.split()[0] for line in printed[:3]]
    for one in found:
        assert one["many"]["rows"] == 20000 and one["seconds"]["min"] > 0
        assert one["fill"]["min"] >= one["goal"] or one["below_goal"]
        assert not one["avoidable"]
        assert one["costliest_rank"]["by_cost"] <= one["costliest_rank"]["in_turn"]


@given(st.lists(st.integers(1, 4096), max_size=60))
def test_no_packing_stays_below_the_bound(drawn: list[int]) -> None:
    lengths = np.array(drawn, dtype=np.int64)
    bound = packing.fewest_packs(lengths)
    assert bound <= len(pack(lengths, packing.CAPACITY))
    assert bound >= max(-(-sum(drawn) // 4096), sum(length > 2048 for length in drawn))


def test_the_bound_sees_what_does_not_fit_together() -> None:
    assert packing.fewest_packs(np.array([2049, 2049])) == 2
    assert packing.fewest_packs(np.array([3000, 3000, 1200])) == 3  # 1,200 fits beside neither
    assert packing.fewest_packs(np.array([3000, 3000, 1000])) == 2

"""Several adapters as one: sums are exact, other ways are what their papers write, all of it loads in PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_models import build, difference, in_peft, logits, teach
from luthier.errors import ModelError
from luthier.export.combine import known_ways, load_way
from luthier.export.combine_adapters import combine_adapters
from luthier.models.adapter_files import attach_adapter, save_adapter
from luthier.models.lora import LoraLinear, adapters, apply_lora
from luthier.models.lora_weight import low_rank_update


def written(folder: Path, seed: int, **settings: Any) -> Path:
    model = build("llama")
    apply_lora(model, **{"rank": 4, **settings})
    teach(model, seed)
    save_adapter(model, folder, base_name="some/base")
    return folder


def updates(folder: Path) -> dict[str, Tensor]:
    model = build("llama")
    attach_adapter(model, folder)
    found = {}
    for name, module in adapters(model).items():
        assert isinstance(module, LoraLinear)
        found[name] = low_rank_update(*module.factors, module.scale, False).detach()
    return found


def test_a_sum_is_exact_whatever_ranks_and_modules_they_have(tmp_path: Path) -> None:
    first = written(tmp_path / "a", 1, ranks={"down_proj": 2}, rslora=True)
    second = written(tmp_path / "b", 2, rank=3, target=["q_proj", "down_proj"])
    made = combine_adapters([first, second], [0.7, -0.4], tmp_path / "c")
    ours, theirs, both = (updates(tmp_path / name) for name in "abc")
    for name, update in both.items():
        expected = 0.7 * ours[name] - (0.4 * theirs[name] if name in theirs else 0)
        torch.testing.assert_close(update, expected, rtol=1e-5, atol=1e-6)
    assert made.lost == 0 and both.keys() == ours.keys() | theirs.keys()


@pytest.mark.parametrize("way", known_ways())
def test_peft_reads_it(way: str, tmp_path: Path) -> None:
    folders = [written(tmp_path / name, seed) for seed, name in enumerate("ab")]
    combine_adapters(folders, [0.5, 0.5], tmp_path / "c", by=way, rank=6)
    mine = build("llama")
    attach_adapter(mine, tmp_path / "c")
    assert difference(logits(in_peft(build("llama"), tmp_path / "c")), logits(mine)) < 1e-5
    assert difference(logits(mine), logits(build("llama"))) > 1e-3


def test_a_lower_rank_is_the_nearest_of_that_rank(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, seed) for seed, name in enumerate("ab")]
    combine_adapters(folders, [1.0, 1.0], tmp_path / "whole")
    made = combine_adapters(folders, [1.0, 1.0], tmp_path / "cut", rank=5)
    whole, cut = updates(tmp_path / "whole"), updates(tmp_path / "cut")
    lost = size = 0.0
    for name, update in whole.items():
        values = torch.linalg.svdvals(update)
        assert float((update - cut[name]).norm()) == pytest.approx(float(values[5:].norm()), rel=1e-3)
        lost, size = lost + float(values[5:].square().sum()), size + float(values.square().sum())
    assert made.lost == pytest.approx((lost / size) ** 0.5, rel=1e-3)


def test_ties_by_hand() -> None:
    first = torch.tensor([[4.0, -3.0, 0.1, 2.0]])
    second = torch.tensor([[-1.0, -5.0, 0.2, 3.0]])
    found = load_way("ties")([first, second], [1.0, 1.0], 0.5, torch.Generator())
    # trimmed: [4, -3, 0, 0] and [0, -5, 0, 3]; the mean of those that agree, times the two weights
    torch.testing.assert_close(found, torch.tensor([[8.0, -8.0, 0.0, 6.0]]))
    against = load_way("ties")(
        [torch.tensor([[4.0]]), torch.tensor([[-1.0]])], [1.0, 1.0], 1.0, torch.Generator()
    )
    torch.testing.assert_close(
        against, torch.tensor([[8.0]])
    )  # the smaller one of the other sign is left out


def test_dare_keeps_the_mean_and_drops_the_rest() -> None:
    update = torch.ones(200, 200)
    found = load_way("dare")([update], [1.0], 0.25, torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert float(found.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(load_way("dare")([update], [2.0], 1.0, torch.Generator()), 2 * update)


def test_what_cannot_be_combined_is_told(tmp_path: Path) -> None:
    good = written(tmp_path / "a", 1)
    whole = written(tmp_path / "b", 2, modules_to_save=["norm"])
    with pytest.raises(ModelError, match="more than low-rank updates"):
        combine_adapters([good, whole], [1.0, 1.0], tmp_path / "c")
    other = build("llama", intermediate_size=64)
    apply_lora(other, rank=4)
    save_adapter(other, tmp_path / "d", base_name="some/base")
    with pytest.raises(ModelError, match="different models"):
        combine_adapters([good, tmp_path / "d"], [1.0, 1.0], tmp_path / "c")
    with pytest.raises(ModelError, match="exists already"):
        combine_adapters([good, good], [1.0, 1.0], tmp_path / "a")
    assert not (tmp_path / "c").exists()

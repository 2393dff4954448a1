"""llama.cpp's own rounding is told from every other reason why its answers are too far from the trained model's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


from gguf_asked import damage, trained  # noqa: E402
from luthier.errors import ModelError  # noqa: E402
from luthier.export.gguf.any_type import write_any  # noqa: E402
from luthier.export.gguf.write import write_gguf  # noqa: E402
from luthier.export.verify.bounds import Bounds  # noqa: E402
from luthier.export.verify.compare import apart  # noqa: E402
from luthier.export.verify.engines.gguf_reader import InReader  # noqa: E402
from luthier.export.verify.engines.llama_cpp import InLlamaCpp  # noqa: E402
from luthier.export.verify.engines.llama_plain import InPlainLlamaCpp  # noqa: E402
from luthier.export.verify.explain import ONLY_ROUNDING  # noqa: E402
from luthier.export.verify.rounded_inputs import ROUNDED  # noqa: E402
from luthier.export.verify.verdict import Trained, Verdict, judge, table  # noqa: E402

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}
"""K-quants need rows of whole blocks of 256."""


def kl(told: Trained, one: Any, other: Any) -> float:
    """Mean KL between what two engines give at the places of the trained model."""
    with one as left:
        said = [replace(one, logits_TV=left.logits(one.fed, len(one.logits_TV))) for one in told.said]
    with other as right:
        return apart(said, [right.logits(one.fed, len(one.logits_TV)) for one in told.said]).mean_kl


@pytest.mark.parametrize("kind", ["q8_0", "q5_0", "q4_1", "iq4_nl", "q4_k_m", "q2_k", "q6_k", "f16", "bf16"])
def test_all_that_llama_cpp_lies_off_its_file_is_the_rounding_of_inputs(kind: str, tmp_path: Path) -> None:
    told = trained("qwen3", tmp_path / "model", **WIDE)
    file = tmp_path / "model.gguf"
    write_any(tmp_path / "model", file, kind, lambda folder: [[1, 2, 3, 4]], name="tiny")
    rounding = kl(told, InReader(file, told.config), InLlamaCpp(file, told.longest, told.config))
    engine = InPlainLlamaCpp(file, told.longest, told.config)
    left = kl(told, InReader(file, told.config), engine)
    assert left < max(rounding / 20, 1e-6), (left, rounding)
    assert not engine.unmet() and len(engine.products) == 15
    share, name = engine.explained()
    assert (share >= ONLY_ROUNDING) == (kind != "q4_1") and share > 0.9, (share, name)


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "smollm3"]
)
def test_every_architecture_is_followed(architecture: str, tmp_path: Path) -> None:
    told = trained(architecture, tmp_path / "model")
    file = tmp_path / "model.gguf"
    write_gguf(tmp_path / "model", file, "q8_0")
    engine = InPlainLlamaCpp(file, told.longest, told.config)
    assert kl(told, InReader(file, told.config), engine) < 1e-6
    assert not engine.unmet() and engine.explained()[0] >= ONLY_ROUNDING


@pytest.mark.parametrize("kind", sorted(ROUNDED))
def test_what_is_rounded_stays_within_half_a_step(kind: Any) -> None:
    x = torch.randn(5, 512) * torch.logspace(-1, 3, 5)[:, None]
    x[2, 256:] = 0
    block = (
        256
        if kind.name.endswith("_K") or "IQ2" in kind.name or "IQ3" in kind.name or "XS" in kind.name
        else 32
    )
    found = ROUNDED[kind](x)
    steps = x.unflatten(-1, (-1, block)).abs().amax(-1, keepdim=True) / 127
    step = {"F16": x.abs() * 2.0**-10, "BF16": x.abs() * 2.0**-7}.get(
        kind.name, steps.expand(*steps.shape[:-1], block).flatten(-2)
    )
    # half a step, and what fp16 makes of 127 steps
    assert ((found - x).abs() <= 0.5 * step * (1 + 2.0**-3)).all() and not (found == x)[0].all()
    assert torch.equal(ROUNDED[kind](torch.zeros(1, 256)), torch.zeros(1, 256))


def judged(told: Trained, file: Path, run: Path | None = None, form: str = "q8_0") -> Verdict:
    """The verdict on a file; `run`: another one that the engine runs instead, as if it read the file wrongly."""
    given = run or file, told.longest, told.config
    return judge(
        told,
        file,
        form,
        lambda: InLlamaCpp(*given),
        lambda: InReader(file, told.config),
        lambda: Misreading(file, *given),
    )


class Misreading(InPlainLlamaCpp):
    """Compares with one file what llama.cpp does with another."""

    def __init__(self, file: Path, run: Path, longest: int, config: Any):
        super().__init__(run, longest, config)
        self._inside = {one.name: one for one in gguf.GGUFReader(file).tensors}


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trained, Path], float]:
    """Sets the bound of Q8_0 between what a file lost and what llama.cpp adds, as Gemma's real one has it."""

    def bind(told: Trained, file: Path) -> float:
        with InReader(file, told.config) as engine:
            lost = apart(told.said, [engine.logits(one.fed, len(one.logits_TV)) for one in told.said])
        with InLlamaCpp(file, told.longest, told.config) as engine:
            found = apart(told.said, [engine.logits(one.fed, len(one.logits_TV)) for one in told.said])
        assert lost.mean_kl < found.mean_kl
        bound = (lost.mean_kl * found.mean_kl) ** 0.5
        for module in ("verdict", "explain"):
            monkeypatch.setattr(
                f"luthier.export.verify.{module}.bounds_of", lambda form: Bounds(mean_kl=bound, spread=0.15)
            )
        return bound

    return bind


def test_rounding_alone_is_told_and_no_fault(between: Any, tmp_path: Path) -> None:
    told = trained("qwen3", tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "q8_0")
    bound = between(told, tmp_path / "model.gguf")
    found = judged(told, tmp_path / "model.gguf")
    assert found.same and found.rounding is not None, table(found)
    assert found.found.mean_kl > bound > found.rounding.decoded.mean_kl
    assert found.rounding.adds == found.found.mean_kl - found.rounding.decoded.mean_kl > 0
    assert found.rounding.without.mean_kl < 1e-6 and found.rounding.products == 15
    assert "is the model that was trained, but llama.cpp's own 8-bit products add" in table(found)
    assert "more than" in table(found) and "gguf:f16 does without" in table(found)
    kept = found.to_json()
    assert kept["verdict"] == "same" and kept["rounding"]["beyond"][0].startswith("the mean KL is")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("blk.1.ffn_up.weight", "the decoded file itself is too far off"),
        ("blk.0.attn_k.weight", "the decoded file itself is too far off"),
        ("blk.0.attn_norm.weight", "the decoded file itself is too far off"),
        ("rope", "qwen3.rope.freq_base is 500.0, but the model has 10000.0"),
        ("template", "conversations become another text by its chat template"),
    ],
)
def test_a_wrong_file_stays_refused(what: str, message: str, between: Any, tmp_path: Path) -> None:
    told = trained("qwen3", tmp_path / "model")
    file = tmp_path / "model.gguf"
    write_gguf(tmp_path / "model", file, "q8_0")
    between(told, file)
    damage(file, what)
    found = judged(told, file)
    assert not found.same and found.rounding is None and message in "; ".join(found.faults), table(found)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("blk.1.ffn_up.weight", "its products with blk.1.ffn_up.weight are not those of rounded inputs"),
        ("blk.0.attn_q.weight", "its products with blk.0.attn_q.weight are not those of rounded inputs"),
        ("output_norm.weight", "without its rounding it does not compute what the file says either"),
        ("blk.0.attn_k_norm.weight", "without its rounding it does not compute what the file says either"),
    ],
)
def test_an_engine_that_reads_the_file_wrongly_is_not_explained(
    what: str, message: str, between: Any, tmp_path: Path
) -> None:
    told = trained("qwen3", tmp_path / "model", seed=3)
    file, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    for one in (file, other):
        write_gguf(tmp_path / "model", one, "q8_0")
    between(told, file)
    damage(other, what)
    found = judged(told, file, other)
    assert not found.same and message in "; ".join(found.faults), table(found)


def test_permuted_heads_stay_refused(between: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = trained("llama", tmp_path / "model")
    right, wrong = tmp_path / "right.gguf", tmp_path / "wrong.gguf"
    write_gguf(tmp_path / "model", right, "q8_0")
    monkeypatch.setattr("luthier.export.gguf.architectures._common.paired", lambda weight, heads: weight)
    write_gguf(tmp_path / "model", wrong, "q8_0")
    monkeypatch.undo()
    between(told, right)
    found = judged(told, wrong)
    assert not found.same and found.rounding is None, table(found)
    assert "the decoded file itself is too far off" in "; ".join(found.faults)


def test_stacked_experts_are_not_explained(between: Any, tmp_path: Path) -> None:
    told = trained("qwen3_moe", tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "q8_0")
    between(told, tmp_path / "model.gguf")
    found = judged(told, tmp_path / "model.gguf")
    assert not found.same and "products with stacked experts are not known here" in "; ".join(found.faults)


def test_another_layout_of_tensors_is_not_guessed_at(between: Any, tmp_path: Path, monkeypatch: Any) -> None:
    told = trained("qwen3", tmp_path / "model")
    file = tmp_path / "model.gguf"
    write_gguf(tmp_path / "model", file, "q8_0")
    with InPlainLlamaCpp(file, told.longest, told.config) as engine:
        monkeypatch.setattr(engine, "_name_of", lambda node: b"something else")
        with pytest.raises(ModelError, match="lays out its tensors in another way than is known here"):
            engine.logits([1, 2, 3], 1)

"""The LoRA family by law: every file of `models/lora_init/` and every variant keeps the same promises."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_models
from lora_models import build, difference, in_peft, logits, teach
from luthier.config.lora_section import known_inits
from luthier.errors import ModelError
from luthier.kernels.linears import Linears
from luthier.models import lora_linear
from luthier.models.activations.levels import Level
from luthier.models.adapter_files import load_adapter, save_adapter
from luthier.models.adapter_table import adapter_table
from luthier.models.compat import plain_attention
from luthier.models.fused.check import fuse_checked
from luthier.models.lora import adapter_parameters, adapters, apply_lora, disable_adapters, merge_adapters
from luthier.models.lora_init import load_watch, needs_rows
from luthier.models.lora_watch import begin_from_rows
from luthier.models.policy import Policy
from luthier.models.tripwire import probe

pytestmark = pytest.mark.filterwarnings("ignore:.*pattern keys did not match.*")

PATTERNS: dict[str, Any] = {
    "ranks": {"down_proj": 6, r"0\.self_attn\.(q|k)_proj": 2},
    "alphas": {"v_proj": 5.0},
    "layers": [1],
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"init {name}": {"init": name} for name in known_inits()},
    "pissa, rslora": {"init": "pissa", "rslora": True},
    "ranks": {"ranks": PATTERNS["ranks"], "alphas": PATTERNS["alphas"]},
    "olora, ranks": {"init": "olora", "ranks": {"down_proj": 6}},
    "layers": {"layers": "last 1"},
    "dora": {"dora": True},
    "dora, pissa, rslora": {"dora": True, "init": "pissa", "rslora": True},
    "dora, ranks": {"dora": True, "ranks": {"down_proj": 6}},
    "frozen a": {"train_a": False},
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def adapted(variant: str, family: str = "llama") -> Any:
    model = build(family)
    settings = VARIANTS[variant]
    apply_lora(model, rank=4, generator=seeded(), **settings)
    if needs_rows(init := settings.get("init", "kaiming")):
        begin_from_rows(Policy(model, "plain"), init, [probe(model)])
    return model


def taught(variant: str, family: str = "llama") -> Any:
    model = adapted(variant, family)
    teach(model)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_changes_nothing_before_it_has_learned(variant: str, family: str) -> None:
    if family == "gpt2" and "ranks" in variant:
        pytest.skip("names of Llama's modules")
    model, plain = adapted(variant, family), logits(build(family))
    assert difference(logits(model), plain) < 1e-5
    teach(model)
    assert difference(logits(model), plain) > 1e-2
    with disable_adapters(model):
        assert torch.equal(logits(model), plain)  # the base's own weights are never touched


@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_computes_the_same_on_the_original_base(variant: str, tmp_path: Path) -> None:
    model = taught(variant)
    save_adapter(model, tmp_path, base_name="some/base")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*|.*unexpected.*")
        theirs = in_peft(build("llama"), tmp_path)
    assert difference(logits(theirs), logits(model)) < 1e-5
    again = build("llama")
    load_adapter(again, tmp_path)
    assert difference(logits(again), logits(model)) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_is_adapted(variant: str) -> None:
    model = taught(variant)
    expected = logits(model)
    merge_adapters(model)
    assert not adapters(model)
    assert difference(logits(model), expected) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_read_back_bit_for_bit(variant: str, tmp_path: Path) -> None:
    model = taught(variant)
    save_adapter(model, tmp_path, base_name="some/base")
    again = adapted(variant)
    with torch.no_grad():  # the decomposition of another machine may differ in the last bit
        for buffer in (b for n, b in again.named_buffers() if "start_" in n):
            buffer.mul_(1.5)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    mine, loaded = adapter_parameters(model), adapter_parameters(again)
    assert mine.keys() == loaded.keys()
    assert all(torch.equal(mine[name], loaded[name]) for name in mine)


def gradients(policy: Policy, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    policy.zero_grad()
    logp_N = policy(batch)
    (logp_N * torch.linspace(0.5, 1.5, len(logp_N))).sum().backward()
    return logp_N.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_layers_give_the_plain_gradients(variant: str) -> None:
    model = taught(variant)
    policy = Policy(model)
    batch = probe(model)
    logp_N, plain = gradients(policy, batch)
    fusion, line = fuse_checked(policy)
    assert fusion is not None, line
    again_N, fused = gradients(policy, batch)
    torch.testing.assert_close(again_N, logp_N, rtol=1e-4, atol=1e-5)
    assert plain.keys() == fused.keys()
    for name, gradient in plain.items():
        assert (fused[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns(variant: str) -> None:
    model = adapted(variant)
    ids = torch.tensor([[5, 17, 3, 88, 41, 9, 60, 2]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2


def test_ranks_and_alphas_go_to_the_modules_they_name() -> None:
    model = build("llama")
    apply_lora(model, rank=4, ranks=PATTERNS["ranks"], alphas={"v_proj": 5.0})
    found = {name: (m.rank, m.alpha) for name, m in adapters(model).items()}
    assert found["model.layers.0.self_attn.q_proj"] == (2, 4.0)
    assert found["model.layers.1.self_attn.q_proj"] == (4, 8.0)
    assert found["model.layers.1.mlp.down_proj"] == (6, 12.0)
    assert found["model.layers.0.self_attn.v_proj"] == (4, 5.0)


@pytest.mark.parametrize(
    ("layers", "expected"), [([1], {1}), ("last 1", {1}), ("1-", {1}), ("0-0", {0}), ("0-9", {0, 1})]
)
def test_only_the_layers_that_are_named(layers: Any, expected: set[int]) -> None:
    model = build("llama")
    report = apply_lora(model, rank=4, layers=layers)
    assert {int(name.split(".")[2]) for name in report.targets} == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": {"nothing": 4}}, "lora.ranks names 'nothing'"),
        ({"alphas": {"nothing": 4}}, "lora.alphas names 'nothing'"),
        ({"layers": [0, 7]}, "has the layers 0 to 1"),
        ({"layers": "5-"}, "has the layers 0 to 1"),
        ({"init": "pissa", "rank": 4096}, "Lower lora.rank"),
        ({"init": "orthogonal", "rank": 3}, "Make it even"),
    ],
)
def test_what_cannot_work_is_told_and_changes_nothing(settings: dict[str, Any], message: str) -> None:
    model = build("llama")
    with pytest.raises(ModelError, match=message):
        apply_lora(model, **{"rank": 4, **settings})
    assert not adapters(model)


def test_pissa_is_the_principal_part_and_the_fast_one_nearly() -> None:
    from luthier.models.lora_init import load_init

    weight_MK = torch.randn(24, 40, generator=seeded()) * torch.logspace(0, -2, 40)
    left, values, right = torch.linalg.svd(weight_MK, full_matrices=False)
    best = (left[:, :4] * values[:4]) @ right[:4]
    for name, bound in (("pissa", 1e-5), ("pissa_fast", 1e-3)):
        a_RK, b_MR = load_init(name)(weight_MK, 4, 0.5, seeded())
        assert (0.5 * b_MR @ a_RK - best).norm() < bound * best.norm(), name


def test_olora_is_the_beginning_of_the_qr_decomposition() -> None:
    from luthier.models.lora_init import load_init

    weight_MK = torch.randn(24, 40, generator=seeded())
    a_RK, b_MR = load_init("olora")(weight_MK, 4, 2.0, None)
    torch.testing.assert_close(b_MR.T @ b_MR, torch.eye(4))
    torch.testing.assert_close((b_MR @ a_RK)[:, :4], weight_MK[:, :4], rtol=1e-4, atol=1e-5)


def test_eva_finds_the_directions_of_all_inputs_it_saw() -> None:
    rows = torch.randn(60, 24, generator=seeded()) * torch.logspace(0, -2, 24)
    watch = load_watch("eva")(7, 4, 1.0)
    for part in rows.split(20):
        watch.see(part)
    a_RK, b_MR = watch.factors()
    right = torch.linalg.svd(rows)[2][:4]
    assert float((a_RK @ right.T).abs().diagonal().min()) > 0.99 and not b_MR.any() and b_MR.shape == (7, 4)


@pytest.mark.parametrize(("layout", "rel"), [("packed", 2e-3), ("rows", 0.04), ("plain", 0.04)])
def test_lora_ga_goes_along_the_gradient_of_the_weights(layout: Any, rel: float) -> None:
    """Documents that go through the model one by one are added up as 2r directions, which loses a little."""
    truth = build("llama")
    truth.requires_grad_(True)
    batch = probe(truth)
    (-Policy(truth, "plain")(batch).mean()).backward()
    model = build("llama")
    apply_lora(model, rank=4)
    begin_from_rows(Policy(model, layout), "lora_ga", [batch])
    for name, module in adapters(model).items():
        gradient = truth.get_submodule(name).weight.grad
        values = torch.linalg.svdvals(gradient)
        size = module.out_features**0.25 / 4
        along_a, along_b = module.lora_A / size @ gradient.T, module.lora_B.T / size @ gradient
        assert float(along_a.norm()) == pytest.approx(float(values[:4].norm()), rel=rel), name
        assert float(along_b.norm()) == pytest.approx(float(values[4:8].norm()), rel=10 * rel), name
        for directions in (module.lora_A / size, module.lora_B.T / size):
            torch.testing.assert_close(directions @ directions.T, torch.eye(4), rtol=0, atol=1e-4)
    assert not any(p.grad is not None for p in model.parameters())
    with plain_attention(model):
        assert difference(logits(model), logits(build("llama"))) < 1e-5


def test_looking_at_rows_changes_nothing_else() -> None:
    model = build("llama")
    apply_lora(model, rank=4, dropout=0.1)
    model.train()
    state = torch.get_rng_state()
    begin_from_rows(Policy(model), "lora_ga", [probe(model)])
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(module.enabled for module in adapters(model).values())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_table_says_what_runs_how() -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model: Any = tiny_models.build("qwen3_moe", **experts, mlp_only_layers=[0])
    apply_lora(model, rank=4, target=["q_proj", "gate_proj", "lm_head"], ranks={"lm_head": 2})
    policy = Policy(model)
    fusion, line = fuse_checked(policy)
    assert adapter_table(model, fusion, line) == [
        "  q_proj, gate_proj (3): rank 4, alpha 8; fused: in the tails of its layer's matrix product",
        "  lm_head (1): rank 2, alpha 4; one product with the head",
    ]
    model = build("llama")
    apply_lora(model, rank=4, dora=True, init="pissa", layers=[0], dropout=0.1)
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_: None)
    policy = Policy(model)
    fusion, line = fuse_checked(policy)
    (row,) = adapter_table(model, fusion, line)
    assert "with lengths (DoRA), dropout 0.1, and as much again that it started as; plain: " in row
    assert "mlp.act_fn has hooks" in row


def fixed_mask(like: Tensor, p: float) -> Tensor:
    """The same places for tensors of one shape."""
    size = like.shape[-2:]
    return torch.rand(size, generator=torch.Generator().manual_seed(size[-1])) < 1 - p


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize(
    "settings", [{}, {"dora": True}, {"init": "pissa", "target": ["q_proj", "down_proj"]}]
)
def test_fused_dropout_is_plain_dropout(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_linear, "dropout_mask", lambda x, p: (fixed_mask(x, p) / (1 - p)).to(x.dtype))
    monkeypatch.setattr(
        Linears,
        "draw_mask",
        lambda self, like: (
            fixed_mask(like.new_empty(len(like), self.num_in), 0.25)
            if self.spare and self.dropout and self.training()
            else None
        ),
    )
    model = build(family)
    apply_lora(model, rank=4, dropout=0.25, **settings)
    teach(model)
    policy = Policy(model).train()
    batch = probe(model)
    logp_N, plain = gradients(policy, batch)
    fusion, line = fuse_checked(policy)
    assert fusion is not None and policy.training, line
    for recompute in (False, True):
        for half in (half for layer in fusion.layers for half in layer.halves):
            half.recompute = recompute
        again_N, fused = gradients(policy, batch)
        torch.testing.assert_close(again_N, logp_N, rtol=1e-4, atol=1e-5)
        assert plain.keys() == fused.keys()
        for name, gradient in plain.items():
            assert (fused[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    policy.eval()
    assert (policy(batch).detach() - logp_N).norm() > 1e-3 * logp_N.norm()


def test_levels_draw_the_same_dropout_again() -> None:
    model = build("llama")
    apply_lora(model, rank=4, dropout=0.25, dora=True)
    teach(model)
    policy = Policy(model).train()
    fusion, line = fuse_checked(policy)
    assert fusion is not None, line
    found = []
    for level in (Level.KEEP_ALL, Level.KEEP_ATTENTION, Level.KEEP_INPUT):
        for layer in fusion.layers:
            layer.level = level
        torch.manual_seed(3)
        found.append(gradients(policy, probe(model)))
    for logp_N, fused in found[1:]:
        assert torch.equal(logp_N, found[0][0])
        assert all(torch.equal(fused[name], found[0][1][name]) for name in fused)

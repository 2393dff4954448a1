"""The tripwire: what it must not let through, in 16 bit too, where rounding would hide a leak."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from luthier.data.batch import Example, Segment, collate
from luthier.models.lora import apply_lora
from luthier.models.policy import Policy
from luthier.models.tripwire import choose_policy
from tiny_models import FAMILIES, VOCAB, build, tiny_llama, tiny_phi3

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}


def from_config(model_type: str, **values: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=VOCAB, **values)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def bloom() -> PreTrainedModel:
    """Positions by ALiBi, from its own mask."""
    return from_config("bloom", hidden_size=32, n_layer=2, n_head=4)


def lfm2() -> PreTrainedModel:
    """Short convolutions between attention layers."""
    return build(
        "lfm2", layer_types=["conv", "full_attention"], conv_L_cache=3, block_auto_adjust_ff_dim=False
    )


def gptj() -> PreTrainedModel:
    """Attention of its own making, which knows documents but no trees."""
    return from_config("gptj", n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64)


def qwen2_moe() -> PreTrainedModel:
    """A window that is in its mask only."""
    return build(
        "qwen2_moe", sliding_window=16, use_sliding_window=True, max_window_layers=0,
        layer_types=["sliding_attention"] * 2,
        num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    )  # fmt: skip


@pytest.mark.parametrize("make", [bloom, lfm2, gptj])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_packing_changes_is_refused_in_every_dtype(make: Any, dtype: torch.dtype) -> None:
    choice = choose_policy(make().to(dtype))
    assert choice.policy.layout != "packed" and choice.reasons[0].startswith("packed: "), choice.reasons


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fast_path_is_taken_in_bf16(name: str) -> None:
    choice = choose_policy(FAMILIES[name]().bfloat16())
    assert choice.policy.layout == "packed", choice.reasons


def test_a_window_that_the_attention_is_not_told_of_is_refused_where_rows_can_exceed_it() -> None:
    choice = choose_policy(qwen2_moe())
    assert choice.policy.layout == "rows" and "its window of 16 tokens is not told" in choice.reasons[0]
    assert choose_policy(qwen2_moe(), longest=16).policy.layout == "packed"


def test_rotary_embeddings_that_depend_on_the_longest_document() -> None:
    model = tiny_phi3(rope_parameters=LONGROPE, original_max_position_embeddings=16)
    choice = choose_policy(model)
    assert choice.policy.layout == "rows" and "beyond 16 tokens" in choice.reasons[0]
    assert choose_policy(model, longest=16).policy.layout == "packed"
    draw = np.random.default_rng(0)
    rows = [
        Example((Segment(draw.integers(0, VOCAB, n).astype(np.int32), np.ones(n, np.float32)),))
        for n in (30, 9)
    ]
    with torch.no_grad():
        together = choose_policy(model).policy(collate(rows))
        alone = torch.cat([Policy(model, "plain")(collate([row])) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_it_can_be_asked_again_and_leaves_the_model_as_asked() -> None:
    model = tiny_llama().train()
    first = choose_policy(model)
    second = choose_policy(model)
    assert first.policy.layout == second.policy.layout == "packed" and model.training
    plain = Policy(model, "plain")
    ids = np.arange(5, dtype=np.int32)
    plain(collate([Example((Segment(ids, np.ones(5, np.float32)),))]))


def test_layers_that_only_look_linear_are_no_targets() -> None:
    """PhiMoE's router is an nn.Linear that returns which experts it chose."""
    model = build("phimoe", num_local_experts=2, num_experts_per_tok=1, sliding_window=None)
    report = apply_lora(model, rank=2)
    assert report.targets and not any(
        "router" in name or name.endswith("mlp.gate") for name in report.targets
    )
    model(torch.arange(6)[None])


@pytest.mark.parametrize("size", [1e-4, 1e-3])
def test_an_adapter_on_a_bf16_head_keeps_small_updates(size: float) -> None:
    """As well as the layer's own forward does; folded into a bf16 weight most of them would be lost."""
    model = tiny_llama().bfloat16()
    apply_lora(model, rank=2, target=["lm_head"], generator=torch.Generator().manual_seed(0))
    policy, head = choose_policy(model).policy, model.lm_head
    ids = np.arange(3, 40, dtype=np.int32)
    batch = collate([Example((Segment(ids, np.ones(len(ids), np.float32)),))])

    def score(logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits.double(), -1).gather(1, batch.target_N[:, None])[:, 0]

    with torch.no_grad():
        head.lora_B.normal_(0, size, generator=torch.Generator().manual_seed(1))
        hidden = policy._hidden(batch)
        update = head.scale * hidden.double() @ head.lora_A.double().T @ head.lora_B.double().T
        exact = score(hidden.double() @ head.base.weight.double().T + update)
        own = (score(head(hidden)) - exact).norm()
        folded = (score(hidden @ head.weight.T) - exact).norm()
        ours = (policy(batch).double() - exact).norm()
    assert ours <= 1.2 * own and (size < 1e-3 or ours < folded)

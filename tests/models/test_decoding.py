"""Models taken apart for decoding: the plain model's numbers, or a reason why not; blocks that are shared and freed."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from luthier.kernels import native
from luthier.models.decoding.bound import CannotBind, bind
from luthier.models.decoding.cache import BLOCK, BlockCache, Stored, blocks_for
from luthier.models.decoding.check import check
from luthier.models.decoding.decoder import BlockDecoder
from luthier.models.lora import LoraLinear, adapters, apply_lora, disable_adapters
from tiny_models import FAMILIES, VOCAB, build, tiny_cohere, tiny_gpt2, tiny_granite, tiny_llama, tiny_qwen3

TAKEN_APART = {
    **FAMILIES,
    "granite": tiny_granite,
    "qwen2": lambda **values: build("qwen2", **values),
    "olmo2": lambda **values: build("olmo2", **values),
    "smollm3": lambda **values: build("smollm3", **{"num_hidden_layers": 4, **values}),
    "qwen3 with experts": lambda **values: build(
        "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[0], **values
    ),
    "one key head": lambda **values: tiny_llama(num_key_value_heads=1, **values),
    "biases": lambda **values: tiny_llama(attention_bias=True, **values),
    "llama 3 rotary": lambda **values: tiny_llama(
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
        **values,
    ),
    "yarn": lambda **values: tiny_llama(
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
        },
        **values,
    ),
}  # fmt: skip


def decoder_of(model: PreTrainedModel, num_blocks: int = 40) -> BlockDecoder:
    shape = check(model).shape
    assert shape is not None
    return BlockDecoder(bind(model), shape, num_blocks)


def tokens(length: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def plain_logits(model: PreTrainedModel, text: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]


@torch.no_grad()
def assert_it_decodes_like(model: PreTrainedModel, decoder: BlockDecoder, rtol: float = 2e-5) -> None:
    """Prompts of several lengths, longer than a block among them, and then token by token across its border."""
    texts = [tokens(n, n) for n in (1, 7, BLOCK - 2, BLOCK, 2 * BLOCK + 5)]
    rows = [Stored() for _ in texts]
    for row, text in zip(rows, texts, strict=True):
        decoder.cache.grow(row, len(text) + 6)
    logits_BV = decoder.read(rows, texts)
    for step in range(6):
        expected = torch.stack([plain_logits(model, text) for text in texts])
        error = (logits_BV.to(expected.dtype) - expected).norm(dim=1) / expected.norm(dim=1)
        assert float(error.max()) <= rtol
        new = tokens(len(texts), 100 + step)
        texts = [[*text, token] for text, token in zip(texts, new, strict=True)]
        logits_BV = decoder.step(torch.tensor(new), rows)


@pytest.mark.parametrize("family", TAKEN_APART)
def test_logits_are_the_plain_models(family: str) -> None:
    model = TAKEN_APART[family]()
    assert_it_decodes_like(model, decoder_of(model))


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_without_a_compiler_the_numbers_are_the_same(family: str) -> None:
    model = TAKEN_APART[family]()
    with native.disabled():
        assert_it_decodes_like(model, decoder_of(model))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_in_double_precision(family: str) -> None:
    model = TAKEN_APART[family]().double()
    # cosines and sines, norms and softmax stay fp32 in transformers' own code
    assert_it_decodes_like(model, decoder_of(model), rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_bf16_is_nearer_to_the_exact_logits_than_the_plain_model_is(family: str) -> None:
    """The 2x rule, in the norm over all logits."""
    model = TAKEN_APART[family]().bfloat16()
    exact = TAKEN_APART[family]().bfloat16().double()
    decoder, text, found, plain, truth = decoder_of(model), tokens(20), [], [], []
    row = Stored()
    decoder.cache.grow(row, 40)
    with torch.no_grad():
        found.append(decoder.read([row], [text]))
        for token in [*tokens(12, 1), None]:
            plain.append(plain_logits(model, text).double())
            truth.append(plain_logits(exact, text))
            if token is not None:
                found.append(decoder.step(torch.tensor([token]), [row]).clone())
                text = [*text, token]
    mine = (torch.cat(found).double() - torch.stack(truth)).norm()
    assert mine <= 2 * (torch.stack(plain) - torch.stack(truth)).norm()


@pytest.mark.parametrize("model", [tiny_llama, tiny_qwen3])
def test_adapters_are_read_live(model: Callable[[], PreTrainedModel]) -> None:
    """A low-rank term, not merged: right after every further training step, and when it is switched off."""
    adapted = model()
    before = decoder_of(adapted)
    apply_lora(adapted, rank=3, generator=torch.Generator().manual_seed(0))
    decoder = decoder_of(adapted)
    for seed in range(2):
        torch.manual_seed(seed)
        for module in adapters(adapted).values():
            assert isinstance(module, LoraLinear)
            torch.nn.init.normal_(module.lora_B, std=0.3)
        assert_it_decodes_like(adapted, decoder)
    with disable_adapters(adapted):
        assert_it_decodes_like(adapted, before)
        assert_it_decodes_like(adapted, decoder_of(adapted))


def test_a_head_with_an_adapter_and_weights_trained_whole() -> None:
    model = tiny_llama()
    apply_lora(model, rank=3, target=["lm_head", "q_proj"], modules_to_save=["embed_tokens"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(
                    0.2 * torch.randn_like(parameter, generator=None)
                ) if "lora_A" not in name else None
    assert_it_decodes_like(model, decoder_of(model))


@torch.no_grad()
def test_reading_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt read in pieces, as a long one is, gives what it gives in one."""
    monkeypatch.setattr("luthier.models.decoding.decoder.STREAM_TOKENS", 10)
    for family in ("mistral", "gemma2", "llama"):
        model, texts = TAKEN_APART[family](), [tokens(n, n) for n in (4, 5, 33, 3, 10, 11)]
        decoder, rows = decoder_of(model), [Stored() for _ in texts]
        for row, text in zip(rows, texts, strict=True):
            decoder.cache.grow(row, len(text))
        expected = torch.stack([plain_logits(model, text) for text in texts])
        torch.testing.assert_close(decoder.read(rows, texts), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_fork_goes_its_own_way() -> None:
    model, text = tiny_llama(), tokens(BLOCK + 9)
    decoder, row = decoder_of(model), Stored()
    decoder.cache.grow(row, len(text))
    decoder.read([row], [text])
    forks = decoder.cache.fork(row, 3)
    assert all(fork.blocks[0] == row.blocks[0] for fork in forks)
    assert len({fork.blocks[1] for fork in [row, *forks]}) == 4
    new = [3, 4, 5]
    decoder.step(torch.tensor(new), forks)
    logits_BV = decoder.step(torch.tensor(new), forks)
    expected = torch.stack([plain_logits(model, [*text, token, token]) for token in new])
    torch.testing.assert_close(logits_BV, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["new", "fork", "release"]), st.integers(0, 99)), max_size=40))
def test_blocks_are_never_lost_nor_given_twice(actions: list[tuple[str, int]]) -> None:
    cache = BlockCache(1, 1, 1, 400, torch.float32, torch.device("cpu"))
    alive: list[Stored] = []
    for name, value in actions:
        if name == "new":
            alive.append(Stored(length=value))
            cache.grow(alive[-1], value)
        elif alive and name == "fork":
            alive += cache.fork(alive[value % len(alive)], 2) if cache.num_free > 50 else []
        elif alive:
            cache.release(alive.pop(value % len(alive)))
        used = {block for row in alive for block in row.blocks}
        assert cache.num_free == 400 - len(used)
        for row in alive:
            assert len(row.blocks) == blocks_for(row.length)
        begun = [row.blocks[-1] for row in alive if row.length % BLOCK]
        assert len(begun) == len(set(begun))  # a block that is written to has one owner
    for row in alive:
        cache.release(row)
    assert cache.num_free == 400


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tiny_gpt2, "GPT2Model has no embed_tokens"),
        (tiny_cohere, "no file in models/families describes CohereDecoderLayer"),
        (lambda: tiny_llama(hidden_act="relu"), "its activation is relu"),
        (
            lambda: tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            r"its rotary embedding \(dynamic\) changes with the length",
        ),
    ],
)
def test_what_cannot_be_taken_apart_is_told(make: Callable[[], PreTrainedModel], reason: str) -> None:
    with pytest.raises(CannotBind, match=reason):
        bind(make())


def test_hooks_are_not_passed_over() -> None:
    model = tiny_llama()
    handle = model.model.layers[1].mlp.register_forward_hook(lambda module, given, output: 2 * output)
    assert check(model).reason == "mlp has hooks"
    handle.remove()
    assert check(model).shape is not None


def test_a_layer_that_computes_something_else_is_found_out() -> None:
    model = tiny_llama()
    layer = model.model.layers[0]
    forward = layer.forward
    layer.forward = lambda hidden, *given, **named: 1.05 * forward(hidden, *given, **named)
    checked = check(model)
    assert checked.shape is None and "its logits differ by" in checked.reason


def test_broken_weights_are_left_to_the_plain_way() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[5] = torch.nan
    assert "its logits differ by inf" in check(model).reason

"""Which weights each way opens, and what it costs: laws for every file in models/tuning/."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import luthier
import luthier.models.tuning
from luthier.config.plugins import describe, load_plugin
from luthier.config.tune_section import TuneSection
from luthier.errors import ConfigError
from luthier.models.activations.plain import plannable_layers
from luthier.models.fused.check import fuse_checked
from luthier.models.tripwire import choose_policy, probe
from luthier.models.tuning._parts import Weights, decoder_layers
from luthier.models.tuning.expand import places
from luthier.training.tune import chosen_weights
from tiny_models import build, tiny_gemma3, tiny_gpt2, tiny_llama, tiny_qwen3, tiny_smollm

WAYS = sorted(describe(luthier.models.tuning))


def opened(model: Any, **values: Any) -> set[str]:
    """Names of the weights that a section with these values opens."""
    section = TuneSection(**values)
    way = load_plugin(luthier.models.tuning, section.name)(**section.options)
    chosen = chosen_weights(section, way, model, (), lambda line: None)
    for p in model.parameters():
        p.requires_grad_(id(p) in chosen)
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_without_anything_all_weights_are_open() -> None:
    model = tiny_llama()
    assert opened(model) == {name for name, _ in model.named_parameters()}


def test_layers_names_kinds_and_freezing() -> None:
    model = tiny_qwen3(num_hidden_layers=4, tie_word_embeddings=False)
    everything = {name for name, _ in model.named_parameters()}
    last = {n for n in everything if ".layers.2." in n or ".layers.3." in n}
    assert opened(model, layers="last 2") == last
    assert opened(model, layers=[2, 3], head=True) == {*last, "lm_head.weight"}
    assert opened(model, layers="2-", norms=False) == {n for n in last if "norm" not in n}
    assert opened(model, norms=True, train=["layers.0.mlp"]) == {
        n for n in everything if "norm" in n or ".layers.0.mlp." in n
    }
    assert opened(model, train=["*.q_proj.weight"]) == {n for n in everything if n.endswith("q_proj.weight")}
    assert opened(model, embeddings=False, freeze=["layers.[01]", "lm_head"]) == {*last, "model.norm.weight"}


def test_biases_alone() -> None:
    model = build("qwen2", tie_word_embeddings=True)
    names = opened(model, train=["bias"])
    assert len(names) == 6 and all(name.endswith("_proj.bias") for name in names)


def test_a_name_that_means_nothing_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"tune\.train has 'q_prj'.*nearest: q_proj"):
        opened(tiny_llama(), train=["q_prj"])
    with pytest.raises(ConfigError, match=r"tune\.freeze has 'model.layers.9'"):
        opened(tiny_llama(), freeze=["model.layers.9"])
    with pytest.raises(ConfigError, match="layers 0 to 1"):
        opened(tiny_llama(), layers="5-8")


def test_tied_weights_are_one() -> None:
    model = tiny_smollm()
    assert "model.embed_tokens.weight" not in opened(model, freeze=["lm_head"])
    with pytest.raises(ConfigError, match="weights of its head"):
        opened(model, head=True, embeddings=False)


@pytest.mark.parametrize("make", [tiny_llama, tiny_smollm, tiny_gemma3, tiny_gpt2, tiny_qwen3])
def test_new_layers_change_nothing_and_can_be_loaded(make: Any, tmp_path: Any) -> None:
    model = make() if make is tiny_gpt2 else make(num_hidden_layers=4)
    before = copy.deepcopy(model)
    way = load_plugin(luthier.models.tuning, "expand")(blocks=2)
    number = len(decoder_layers(model)[1])
    way.reshape(model)
    names = opened(model, name="expand", blocks=2)
    fresh = {number for number, (_, new) in enumerate(places(number, 2)) if new}
    assert {int(name.split(".")[2]) for name in names} == fresh
    tokens = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, before(tokens).logits)
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.num_hidden_layers == number + 2
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
        generated = [m.generate(tokens, max_new_tokens=5, do_sample=False) for m in (loaded, model)]
    assert torch.equal(*generated)


def test_more_new_layers_than_old_ones_are_refused() -> None:
    assert [source for source, new in places(6, 2) if new] == [2, 5]
    assert [source for source, new in places(5, 2) if new] == [1, 4]
    with pytest.raises(ConfigError, match="only 2 layers"):
        load_plugin(luthier.models.tuning, "expand")(blocks=3).reshape(tiny_llama())


@pytest.mark.parametrize("name", [n for n in WAYS if load_plugin(luthier.models.tuning, n).takes_turns])
def test_turns_depend_on_seed_and_step_alone_and_leave_no_block_out(name: str) -> None:
    way = load_plugin(luthier.models.tuning, name)(every=3)
    turns = [way.active(5, step, 0) for step in range(120)]
    assert turns == [way.active(5, step, 0) for step in range(120)]
    assert all(turns[step] == turns[step - step % 3] for step in range(120))
    assert set().union(*turns) == set(range(5))
    assert turns != [way.active(5, step, 1) for step in range(120)]
    assert len({len(turn) for turn in turns}) == 1


@pytest.mark.parametrize(
    "section",
    [{"layers": "last 1"}, {"train": ["bias"]}, {"train": ["norm"]}, {"train": ["down_proj", "k_proj"]}],
    ids=["last", "bias", "norms", "some"],
)
def test_partly_tuned_layers_are_fused_and_exact(section: dict[str, Any]) -> None:
    """fuse_checked compares log-probabilities and all gradients with the plain layers."""
    model = build("qwen2", num_hidden_layers=3)
    policy = choose_policy(model).policy
    names = opened(policy.model, **section)
    batch = probe(policy.model)
    plain = torch.autograd.grad(policy(batch).sum(), [policy.model.get_parameter(n) for n in sorted(names)])
    fusion, line = fuse_checked(policy)
    assert fusion is not None and len(fusion.layers) == 3, line
    fused = torch.autograd.grad(policy(batch).sum(), [policy.model.get_parameter(n) for n in sorted(names)])
    for one, two in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_below_the_lowest_open_layer_nothing_is_kept(fused: bool) -> None:
    model = tiny_llama(num_hidden_layers=4)
    policy = choose_policy(model).policy
    opened(policy.model, layers="last 1")
    if fused:
        fuse_checked(policy)
    reached: list[int] = []
    for number, layer in enumerate(decoder_layers(policy.model)[1]):
        assert isinstance(layer, nn.Module)

        def see(module: nn.Module, given: Any, out: torch.Tensor, number: int = number) -> None:
            if out.requires_grad:
                reached.append(number)

        layer.register_forward_hook(see)
    loss = policy(probe(policy.model)).sum()
    loss.backward()
    assert reached == [3]
    assert {n for n, p in policy.model.named_parameters() if p.grad is not None} == {
        n for n, p in policy.model.named_parameters() if ".layers.3." in n
    }


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_what_is_saved_for_the_backward_pass_shrinks_with_what_is_open(fused: bool) -> None:
    policy = choose_policy(tiny_llama(num_hidden_layers=4)).policy
    sizes = {}
    for layers in ("0-", "last 2", "last 1"):
        opened(policy.model, layers=layers)
        fusion = fuse_checked(policy)[0] if fused else None
        known = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor, known: set[int] = known, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = policy(probe(policy.model)).sum()
        sizes[layers] = sum(kept.values())
        loss.backward()
        if fusion is not None:
            fusion.release()
    assert sizes["last 1"] < 0.6 * sizes["last 2"] < 0.36 * sizes["0-"] / 0.6


def test_a_block_outside_layers_is_one_of_badams_only_if_asked_for() -> None:
    model = tiny_llama()
    assert all(".layers." in name for name in opened(model, name="badam"))
    assert "model.embed_tokens.weight" in opened(model, name="badam", embeddings=True)
    assert len(Weights(model).layers) == 2


def test_layers_that_no_gradient_reaches_are_not_planned() -> None:
    policy = choose_policy(tiny_llama(num_hidden_layers=4)).policy
    numbers = {"last 1": 1, "1-": 3, "0-1": 4}
    for layers, number in numbers.items():
        opened(policy.model, layers=layers)
        assert len(plannable_layers(policy)) == number
    opened(policy.model, layers="last 1", embeddings=True)
    assert len(plannable_layers(policy)) == 4
    opened(policy.model, train=["model.norm", "lm_head"])
    assert len(plannable_layers(policy)) == 4  # nothing to plan; all of them may be


def test_a_regular_expression_begins_with_a_sign_of_its_own() -> None:
    names = opened(tiny_llama(), train=[r"^model\.layers\.1\.mlp\.(up|gate)_proj", "^lm_head.weight$"])
    assert names == {f"model.layers.1.mlp.{n}_proj.weight" for n in ("up", "gate")} | {"lm_head.weight"}
    with pytest.raises(ConfigError, match="no regular expression"):
        opened(tiny_llama(), train=["^("])

"""New tokens: the old ones keep their logits, only what should be trained moves, and PEFT reads what is saved."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from chat_samples import byte_level
from lora_models import BUILDERS, EMBEDDINGS, TIED, build, difference, in_peft, logits, teach, teach_peft
from luthier.errors import ModelError
from luthier.export.merge import merge_to_folder
from luthier.kernels.logprob import LogitShape
from luthier.models.adapter_files import attach_adapter, load_adapter, save_adapter
from luthier.models.decoding.check import check
from luthier.models.heads import possible_shapes
from luthier.models.lora import adapter_parameters, apply_lora, disable_adapters, merge_adapters
from luthier.models.lora_targets import output_embeddings
from luthier.models.new_tokens import NewTokens, add_tokens, make_room, num_rows, place_tokens, rounded_up
from luthier.models.policy import Policy
from luthier.models.token_rows import TokenRows
from luthier.models.tripwire import choose_policy, probe
from tiny_models import VOCAB
from tiny_models import build as build_type

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pattern keys did not match.*",
    "ignore:fan_in_fan_out is set.*",
    "ignore:.*ensure_weight_tying.*",
)

# rows that no token uses yet, some of each, rows that the model lacks
PLACES = {"spare": 92, "both": VOCAB - 1, "grown": VOCAB}
FAMILIES = list(BUILDERS)
CASES = [(family, "both") for family in FAMILIES] + [
    (family, place) for family in ("llama", "smollm") for place in ("spare", "grown")
]


def tokens_at(place: str) -> NewTokens:
    """Three new tokens, two of them described by others, behind as many tokens as `place` says are known."""
    known = PLACES[place]
    ids = {f"<{number}>": known + number for number in range(3)}
    return NewTokens(ids, {"<0>": (5, 17, 3), "<1>": (), "<2>": (88,)}, {}, known)


def with_tokens(family: str, place: str, **settings: Any) -> tuple[Any, NewTokens]:
    """A model with a LoRA adapter and new tokens, as training begins with it."""
    model, tokens = build(family), tokens_at(place)
    place_tokens(model, tokens)
    values = {"rank": 4, "generator": torch.Generator().manual_seed(0), **settings}
    apply_lora(model, tokens=list(tokens.ids.values()), **values)
    return model, tokens


def logits_of(model: Any, tokens: NewTokens) -> Tensor:
    """Logits over the vocabulary of a text in which the new tokens stand between old ones."""
    ids = torch.tensor([[5, *tokens.ids.values(), 17, 60, *reversed(tokens.ids.values())]])
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits.float()[..., : tokens.needed]


@pytest.mark.parametrize(("family", "place"), CASES)
def test_old_tokens_keep_their_logits(family: str, place: str) -> None:
    before = logits(build(family))
    model, tokens = with_tokens(family, place)
    assert num_rows(model) >= tokens.needed
    assert difference(logits(model)[..., : tokens.known], before[..., : tokens.known]) < 1e-5
    merge_adapters(model)
    assert difference(logits(model)[..., : tokens.known], before[..., : tokens.known]) < 1e-5


@pytest.mark.parametrize("family", ["llama", "smollm", "gpt2"])
def test_new_tokens_start_as_the_mean_of_their_words(family: str) -> None:
    model, tokens = build(family), tokens_at("both")
    old = [weight.detach().clone()[: tokens.known] for weight in weights_of(model)]
    place_tokens(model, tokens)
    for before, weight in zip(old, weights_of(model), strict=True):
        for token, number in tokens.ids.items():
            of = list(tokens.words[token]) or slice(None)
            torch.testing.assert_close(weight[number], before[of].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "smollm", "granite"])
def test_a_new_token_is_no_likelier_than_its_words(family: str) -> None:
    model, tokens = build(family), tokens_at("grown")
    place_tokens(model, tokens)
    chance = torch.softmax(logits(model), -1)
    for token, number in tokens.ids.items():
        words = list(tokens.words[token]) or slice(0, tokens.known)
        assert (chance[..., number] <= chance[..., words].mean(-1) * (1 + 1e-5)).all()


def weights_of(model: Any) -> list[Tensor]:
    head: Any = output_embeddings(model)
    embedding = model.get_input_embeddings().weight
    return [embedding] + ([head.weight] if head.weight is not embedding else [])


@pytest.mark.parametrize("family", ["llama", "smollm", "gemma3", "cohere", "gpt2"])
def test_rows_learn_what_the_whole_weights_would(family: str) -> None:
    """Gradients by the model's own logits, and by the chunked head, are those of the rows of a full weight."""
    wanted, tokens = gradients(family, rows=False, through_head=False)
    for through_head in (False, True):
        found, _ = gradients(family, rows=True, through_head=through_head)
        assert len(found) == len(wanted)
        for mine, whole in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, whole[list(tokens.ids.values())], rtol=2e-3, atol=2e-5)


def gradients(family: str, *, rows: bool, through_head: bool) -> tuple[list[Tensor], NewTokens]:
    model, tokens = build(family), tokens_at("both")
    place_tokens(model, tokens)
    if rows:
        apply_lora(model, rank=2, tokens=list(tokens.ids.values()))
        learned = {id(m.rows): m.rows for m in model.modules() if isinstance(m, TokenRows)}
    else:
        model.requires_grad_(False)
        learned = {id(weight): weight.requires_grad_() for weight in weights_of(model)}
    batch = probe(model)
    shape = choose_policy(build(family)).policy.head.shape if through_head else LogitShape()
    policy = Policy(model, "rows" if through_head else "plain", shape)
    loss, _ = policy.linear_loss(batch, torch.linspace(-1, 1, len(batch.target_N)))
    return list(torch.autograd.grad(loss, list(learned.values()))), tokens


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("family", ["smollm", "llama"])
def test_training_moves_the_rows_and_nothing_else_of_the_embeddings(family: str, trained: bool) -> None:
    model, tokens = with_tokens(family, "both", train_tokens=trained)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # an adapter's A only moves once B has
        (-Policy(model, "packed")(probe(model)).sum()).backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    adapter = set(adapter_parameters(model))
    assert moved == {name for name in adapter if trained or not name.endswith(".rows")}
    merge_adapters(model)
    for weight in weights_of(model):
        others = [number for number in range(len(weight)) if number not in tokens.ids.values()]
        starts = [w for n, w in before.items() if n.endswith("base.weight") and w.shape == weight.shape]
        assert any(torch.equal(weight[others], start[others]) for start in starts)


@pytest.mark.parametrize(("family", "place"), CASES)
def test_peft_reads_what_is_saved_here(family: str, place: str, tmp_path: Path) -> None:
    model, tokens = with_tokens(family, place)
    teach(model)
    save_adapter(model, tmp_path, base_name="some/base")
    base = build(family)
    if num_rows(base) < tokens.needed:  # as its users do, and AutoPeftModelForCausalLM does by the tokenizer
        base.resize_token_embeddings(tokens.needed)
    theirs = in_peft(base, tmp_path)
    assert difference(logits_of(theirs, tokens), logits_of(model, tokens)) < 1e-5


@pytest.mark.parametrize(("family", "place"), CASES)
def test_what_is_saved_is_read_here(family: str, place: str, tmp_path: Path) -> None:
    model, tokens = with_tokens(family, place)
    start = logits_of(model, tokens)
    teach(model)
    save_adapter(model, tmp_path, base_name="some/base")
    again = build(family)
    load_adapter(again, tmp_path)
    mine, loaded = adapter_parameters(model), adapter_parameters(again)
    assert mine.keys() == loaded.keys() and all(torch.equal(mine[key], loaded[key]) for key in mine)
    assert difference(logits_of(again, tokens), logits_of(model, tokens)) < 1e-6
    assert torch.equal(logits(again), logits(model))  # rows that no token uses, too
    back, _ = with_tokens(family, place)
    load_adapter(back, tmp_path)  # into the adapter that is there, as a resumed run does
    assert torch.equal(logits_of(back, tokens), logits_of(model, tokens))
    with disable_adapters(back):
        assert difference(logits_of(back, tokens), start) < 1e-6


@pytest.mark.parametrize("family", ["smollm", "llama", "gemma3"])
@pytest.mark.parametrize("form", ["list", "embedding", "head", "both"])
def test_what_peft_saved_is_read_here(family: str, form: str, tmp_path: Path) -> None:
    name = EMBEDDINGS.get(family, "embed_tokens")
    ids = [7, 3, 40]
    indices: Any = {
        "list": ids,
        "embedding": {name: ids},
        "head": {"lm_head": [9, 2]},
        "both": {name: ids, "lm_head": ids},
    }[form]
    config = peft.LoraConfig(
        r=2, target_modules="all-linear", trainable_token_indices=indices, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(build(family), config)
    teach_peft(theirs)
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=False)
    model = build(family)
    attach_adapter(model, tmp_path)
    expected = logits(theirs)
    assert difference(logits(model), expected) < 1e-5
    save_adapter(model, tmp_path / "again", base_name="some/base")
    if form != "head" or family not in TIED:
        assert difference(logits(in_peft(build(family), tmp_path / "again")), expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "smollm"])
@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_embeddings_trained_whole_have_the_new_rows(family: str, saved: list[str], tmp_path: Path) -> None:
    model, tokens = with_tokens(family, "grown", modules_to_save=saved)
    teach(model)
    save_adapter(model, tmp_path, base_name="some/base")
    again = build(family)
    attach_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    base = build(family)
    base.resize_token_embeddings(num_rows(model))
    assert difference(logits_of(in_peft(base, tmp_path), tokens), logits_of(model, tokens)) < 1e-5


@pytest.mark.parametrize(
    ("family", "place"), [case for case in CASES if case[0] not in ("granite", "mistral")]
)
@pytest.mark.parametrize("saved", [[], ["embed"]])
def test_merged_folders_have_them(family: str, place: str, saved: list[str], tmp_path: Path) -> None:
    name = EMBEDDINGS.get(family, "embed_tokens")
    model, tokens = with_tokens(family, place, modules_to_save=[name for _ in saved])
    teach(model)
    base = build(family)
    base.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    save_adapter(model, tmp_path / "adapter", base_name="some/base")
    merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.config.vocab_size == num_rows(model) == num_rows(merged)
    assert difference(logits_of(merged, tokens), logits_of(model, tokens)) < 1e-5
    expected = logits(model)
    merge_adapters(model)
    assert difference(logits(model), expected) < 1e-5
    assert difference(logits(merged), logits(model)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "smollm", "gemma3"])
def test_decoding_from_parts_knows_them(family: str) -> None:
    model, _ = with_tokens(family, "grown")
    teach(model)
    found = check(model)
    assert found.shape is not None and found.shape in possible_shapes(model.config), found.reason


def test_a_head_with_an_adapter_cannot_have_rows_too() -> None:
    for target in (["q_proj", "lm_head"], r".*(q_proj|lm_head)"):
        with pytest.raises(ModelError, match=r"lora.target means lm_head, which holds rows of new tokens"):
            with_tokens("llama", "grown", target=target)


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, _ = with_tokens("llama", "grown")
    save_adapter(model, tmp_path, base_name="some/base")
    other = build("llama", hidden_size=48)
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    with pytest.raises(ModelError, match="does not fit"):
        attach_adapter(other, tmp_path)
    after = other.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert other.config.vocab_size == VOCAB


def test_embeddings_that_do_more_than_a_lookup_are_refused() -> None:
    model = build("llama")
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ModelError, match="more than a lookup"):
        apply_lora(model, rank=2, tokens=[1])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("needed", "before", "rows"), [(98, 97, 98), (129, 128, 256), (49153, 49152, 49280)])
def test_the_vocabulary_stays_as_round_as_it_was(needed: int, before: int, rows: int) -> None:
    assert rounded_up(needed, before) == rows


def test_room_is_made_the_same_way_each_time_and_random_numbers_are_left_alone() -> None:
    first, second = (build_type("llama", vocab_size=96) for _ in range(2))
    state = torch.get_rng_state()
    assert make_room(first, 97) == 96 and num_rows(first) == 128
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    make_room(second, 97)
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert make_room(first, 100) == 128 == num_rows(first)


def test_a_tokenizer_gets_each_token_once_and_tells_of_those_it_has() -> None:
    tokenizer = deepcopy(byte_level())  # others share it
    before = len(tokenizer)
    tokens = add_tokens(tokenizer, {"<tool>": "call a tool", "a": "", "</tool>": ""})
    assert tokens.ids == {"<tool>": before, "</tool>": before + 1} and tokens.known == before
    assert tokens.present == {"a": tokenizer.convert_tokens_to_ids("a")}
    assert tokens.words == {"<tool>": tuple(tokenizer("call a tool").input_ids), "</tool>": ()}
    assert "1 from the words" in tokens.note() and "left as they are: a (" in tokens.note()
    ids = tokenizer("x<tool>y</tool>", add_special_tokens=False).input_ids
    assert [number for number in ids if number >= before] == [before, before + 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "x<tool>y</tool>"
    again = add_tokens(tokenizer, {"<tool>": "", "</tool>": ""})
    assert not again.ids and again.present == tokens.ids and len(tokenizer) == before + 2

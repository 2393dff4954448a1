"""The native generator: its log-probabilities are the training forward's, and rows do not see each other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from luthier.errors import ConfigError, DataError, RunError
from luthier.models.compat import FOREST, use_forest_attention
from luthier.rollout.decoder import traits_of
from luthier.rollout.native import Completion, NativeGenerator
from luthier.rollout.sampling import SamplingSettings
from tiny_models import FAMILIES, OTHERS, VOCAB, build, tiny_gemma2, tiny_gpt2, tiny_llama, tiny_mistral

EVERY = {**FAMILIES, **OTHERS}
RECURRENT = {
    "mamba": {"state_size": 4, "use_mambapy": False},
    "qwen3_next": {
        "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2, "num_experts": 2,
        "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "partial_rotary_factor": 0.5,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}  # fmt: skip
EOS = 2


class Letters:
    """A tokenizer with one letter for each id."""

    def decode(self, token_ids: list[int], **options: bool) -> str:
        return "".join(chr(0x100 + token) for token in token_ids)


def prompts_of(lengths: list[int], seed: int = 0, prefix: int = 0) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    common = torch.randint(3, VOCAB, (prefix,), generator=random).tolist()
    return [common + torch.randint(3, VOCAB, (n,), generator=random).tolist() for n in lengths]


UNEQUAL = prompts_of([9, 1, 23, 4, 9, 15, 2])
"""Longer and shorter than the sliding windows of 6, with two of one length."""
SHARED = prompts_of([3, 11, 1, 7, 3, 20, 5], prefix=18)


WAYS = pytest.mark.parametrize("take_apart", [True, False], ids=["from parts", "through forward"])
"""Both ways of generating, for models that have both."""


def generator(model: PreTrainedModel, **options) -> NativeGenerator:
    return NativeGenerator(model, eos_token_ids=[EOS], **{"tokenizer": Letters(), **options})


def whole(model: PreTrainedModel, **options) -> NativeGenerator:
    """One that goes through transformers' forward."""
    return generator(model, take_apart=False, **options)


@torch.no_grad()
def training_logp(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> list[float]:
    """One plain forward over prompt and answer, without a cache."""
    logits_TV = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
    logp_TV = logits_TV.double().log_softmax(-1)
    return [float(logp_TV[len(prompt) - 1 + n, token]) for n, token in enumerate(answer)]


def assert_logp_is_the_training_forward(
    model: PreTrainedModel, prompts: list[list[int]], answers: list[list[Completion]]
) -> None:
    for prompt, samples in zip(prompts, answers, strict=True):
        for answer in samples:
            assert len(answer.ids) == len(answer.logp) > 0
            assert answer.logp == pytest.approx(training_logp(model, prompt, answer.ids), rel=0, abs=1e-4)


def ids(answers: list[list[Completion]]) -> list[list[list[int]]]:
    return [[answer.ids for answer in samples] for samples in answers]


@WAYS
@pytest.mark.parametrize("prompts", [UNEQUAL, SHARED], ids=["unequal", "shared prefix"])
@pytest.mark.parametrize("family", EVERY)
def test_logp_is_the_training_forward(family: str, prompts: list[list[int]], take_apart: bool) -> None:
    model = EVERY[family]()
    settings = SamplingSettings(max_new_tokens=12, temperature=1.3, top_k=60, seed=3, num_samples=3)
    answers = generator(model, take_apart=take_apart).generate(prompts, settings)
    assert_logp_is_the_training_forward(model, prompts, answers)


@WAYS
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_p": 0.9}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", EVERY)
def test_a_batch_gives_what_each_prompt_gives_alone(family: str, sampling: dict, take_apart: bool) -> None:
    native = generator(EVERY[family](), take_apart=take_apart)
    settings = SamplingSettings(max_new_tokens=12, seed=1, **sampling)
    for prompts in (UNEQUAL, SHARED):
        alone = [native.generate([p], settings, numbers=[n])[0] for n, p in enumerate(prompts)]
        together = native.generate(prompts, settings)
        assert ids(together) == ids(alone)


@pytest.mark.parametrize("model_type", RECURRENT)
def test_models_with_a_recurrent_state_never_see_padding(model_type: str) -> None:
    model = build(model_type, **RECURRENT[model_type])
    traits = traits_of(model, 3)
    assert traits.cache is not None and not traits.pads and not traits.shares_prefix
    native, settings = generator(model), SamplingSettings(max_new_tokens=8, temperature=1.0, num_samples=2)
    for prompts in (UNEQUAL, SHARED):
        together = native.generate(prompts, settings)
        assert_logp_is_the_training_forward(model, prompts, together)
        alone = [native.generate([p], settings, numbers=[n])[0] for n, p in enumerate(prompts)]
        assert ids(together) == ids(alone)


def test_a_model_without_a_cache_is_read_anew_for_each_token() -> None:
    model = tiny_llama()
    plain = generator(model).generate(UNEQUAL, SamplingSettings(max_new_tokens=6))
    forward = model.forward

    def cacheless(input_ids: torch.Tensor, use_cache: bool = False, **options):
        return forward(input_ids=input_ids, use_cache=False)

    model.forward = cacheless  # type: ignore[method-assign]
    assert traits_of(model, 3).cache is None
    assert ids(generator(model).generate(UNEQUAL, SamplingSettings(max_new_tokens=6))) == ids(plain)


@WAYS
def test_greedy_answers_are_those_of_transformers(take_apart: bool) -> None:
    model = tiny_llama()
    answers = generator(model, take_apart=take_apart).generate(UNEQUAL, SamplingSettings(max_new_tokens=20))
    for prompt, (answer,) in zip(UNEQUAL, answers, strict=True):
        given = torch.tensor([prompt])
        options = {"do_sample": False, "eos_token_id": EOS, "pad_token_id": 0}
        theirs = model.generate(input_ids=given, max_new_tokens=20, **options)
        assert answer.ids == theirs[0, len(prompt) :].tolist()


def test_samples_of_a_prompt_differ_and_do_not_depend_on_how_many_there_are() -> None:
    native = generator(tiny_llama())
    settings = SamplingSettings(max_new_tokens=10, temperature=1.0, seed=2, num_samples=5)
    (five,) = ids(native.generate([UNEQUAL[0]], settings))
    (two,) = ids(native.generate([UNEQUAL[0]], replace(settings, num_samples=2)))
    assert five[:2] == two and len({tuple(answer) for answer in five}) == 5
    assert ids(native.generate([UNEQUAL[0]], replace(settings, seed=3))) != [five]


@WAYS
def test_portions_change_nothing(take_apart: bool) -> None:
    model = tiny_llama()
    settings = SamplingSettings(max_new_tokens=10, temperature=1.0, num_samples=3)
    at_once = ids(generator(model, take_apart=take_apart).generate(SHARED, settings))
    for options in ({"batch_rows": 1}, {"batch_rows": 4}, {"batch_tokens": 100}, {"batch_tokens": 1}):
        assert ids(generator(model, take_apart=take_apart, **options).generate(SHARED, settings)) == at_once


@contextmanager
def counted_tokens(model: PreTrainedModel) -> Iterator[list[tuple[int, int]]]:
    """The shape of each forward's input while it lasts."""
    shapes: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("family", "shares"), [(tiny_llama, True), (tiny_gpt2, True), (tiny_mistral, False), (tiny_gemma2, False)]
)
def test_a_common_prefix_is_read_once_where_the_cache_allows_it(
    family: Callable[[], PreTrainedModel], shares: bool
) -> None:
    native = whole(model := family(), batch_rows=4)
    native.generate([[3]], SamplingSettings(max_new_tokens=1))  # looks at the cache
    with counted_tokens(model) as shapes:
        native.generate(SHARED, SamplingSettings(max_new_tokens=1))
    assert shapes == ([(1, 18), (4, 20), (3, 3)] if shares else [(4, 38), (3, 21)])


def test_a_prompt_is_read_once_for_all_its_samples() -> None:
    native = whole(model := tiny_mistral())
    native.generate([[3]], SamplingSettings(max_new_tokens=1))
    with counted_tokens(model) as shapes:
        native.generate(UNEQUAL[:1], SamplingSettings(max_new_tokens=3, temperature=1.0, num_samples=8))
    assert shapes == [(1, 9), (8, 1), (8, 1)]


def test_rows_that_are_done_leave_the_batch() -> None:
    model = tiny_llama()
    long = SamplingSettings(max_new_tokens=20)
    answers = generator(model).generate(UNEQUAL, long)
    # Every second prompt's third token ends its answer.
    native = NativeGenerator(
        model, eos_token_ids={samples[0].ids[2] for samples in answers[::2]}, take_apart=False
    )
    with counted_tokens(model) as shapes:
        ended = native.generate(UNEQUAL, long)
    rows = [rows for rows, _ in shapes[2:]]
    assert rows == sorted(rows, reverse=True) and rows[-1] < len(UNEQUAL)
    assert_logp_is_the_training_forward(model, UNEQUAL, ended)
    for (short,), (whole,) in zip(ended, answers, strict=True):
        assert short.ids == whole.ids[: len(short.ids)]


@WAYS
def test_what_ended_an_answer(take_apart: bool) -> None:
    model = tiny_llama()
    (plain,) = generator(model, take_apart=take_apart).generate(
        UNEQUAL[:1], SamplingSettings(max_new_tokens=8)
    )[0]
    assert (
        plain.finish == "length"
        and len(plain.ids) == 8
        and plain.text
        == Letters().decode(plain.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )
    eos = NativeGenerator(model, eos_token_ids=[plain.ids[3]], tokenizer=Letters(), take_apart=take_apart)
    (ended,) = eos.generate(UNEQUAL[:1], SamplingSettings(max_new_tokens=8))[0]
    first = plain.ids.index(plain.ids[3])
    assert ended == Completion(plain.ids[: first + 1], plain.text[:first], plain.logp[: first + 1], "eos")
    stop = SamplingSettings(max_new_tokens=8, stop=(plain.text[3:5],))
    (stopped,) = generator(model, take_apart=take_apart).generate(UNEQUAL[:1], stop)[0]
    cut = plain.text.index(plain.text[3:5])
    assert stopped == Completion(plain.ids[: cut + 2], plain.text[:cut], plain.logp[: cut + 2], "stop")


@WAYS
@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2])
def test_an_answer_ends_where_the_context_does(
    family: Callable[[], PreTrainedModel], take_apart: bool
) -> None:
    """Its row stays in the batch while nine others go on; learned positions have none past the last."""
    model, prompts = family(), prompts_of([250, *[5] * 9])
    native = NativeGenerator(model, eos_token_ids=[], take_apart=take_apart)
    answers = native.generate(prompts, SamplingSettings(max_new_tokens=12))
    assert [(answer.finish, len(answer.ids)) for (answer,) in answers] == [
        ("length", 6),
        *[("length", 12)] * 9,
    ]
    assert_logp_is_the_training_forward(model, prompts, answers)


def test_prompts_that_cannot_be_answered_are_named() -> None:
    native = generator(tiny_llama())
    with pytest.raises(DataError, match="prompt 1 has 256 tokens, but the model's context holds 256"):
        native.generate(prompts_of([3, 256]), SamplingSettings())
    with pytest.raises(DataError, match="prompt 1 is empty; a model needs at least one token"):
        native.generate([[3], []], SamplingSettings())
    assert native.generate([], SamplingSettings()) == []


def test_text_needs_a_tokenizer() -> None:
    native = NativeGenerator(tiny_llama(), eos_token_ids=[EOS])
    assert native.generate([[3]], SamplingSettings(max_new_tokens=2))[0][0].text == ""
    with pytest.raises(ConfigError, match=r"stop is \('x',\), but the generator has no tokenizer"):
        native.generate([[3]], SamplingSettings(stop=("x",)))
    with pytest.raises(ConfigError, match="text is to be streamed, but the generator has no tokenizer"):
        native.stream([3], SamplingSettings())
    with pytest.raises(ConfigError, match="num_samples is 2, but only one answer can be streamed"):
        generator(tiny_llama()).stream([3], SamplingSettings(temperature=1.0, num_samples=2))


def test_logits_that_are_not_finite_stop_the_run() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(RunError, match="after 0 tokens of the answer to prompt 0 are not finite"):
        generator(model).generate([[3, 4]], SamplingSettings(max_new_tokens=3))


@WAYS
def test_progress_counts_up_to_all_answers(take_apart: bool) -> None:
    told: list[tuple[int, int]] = []
    settings = SamplingSettings(max_new_tokens=4, temperature=1.0, num_samples=2)
    generator(tiny_llama(), batch_rows=3, take_apart=take_apart).generate(
        UNEQUAL, settings, progress=lambda done, total: told.append((done, total))
    )
    assert told == sorted(told) and told[-1] == (14, 14) and len(told) >= 5
    assert {total for _, total in told} == {14}


@WAYS
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 4}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("stop", [False, True])
def test_streamed_text_is_the_generated_text(sampling: dict, stop: bool, take_apart: bool) -> None:
    native = generator(tiny_llama(), take_apart=take_apart)
    settings = SamplingSettings(max_new_tokens=15, **sampling)
    (answer,) = native.generate(UNEQUAL[:1], settings)[0]
    if stop:
        settings = replace(settings, stop=(answer.text[9:11],))
        (answer,) = native.generate(UNEQUAL[:1], settings)[0]
        assert answer.finish == "stop"
    pieces = list(native.stream(UNEQUAL[0], settings))
    assert "".join(pieces) == answer.text and len(pieces) > 5


def state(model: PreTrainedModel) -> tuple[list[bool], bool, str]:
    modes = [module.training for module in model.modules()]
    return modes, torch.is_grad_enabled(), model.config._attn_implementation


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_llama()
    model.train()
    model.model.layers[0].eval()  # a part that is frozen in evaluation mode stays so
    use_forest_attention(model)
    before = state(model)
    assert before[1:] == (True, FOREST)
    native, settings = generator(model), SamplingSettings(max_new_tokens=4)
    native.generate(UNEQUAL, settings)
    assert state(model) == before
    for _ in native.stream(UNEQUAL[0], settings):
        assert state(model) == before
    with pytest.raises(ZeroDivisionError):
        native.generate(UNEQUAL, settings, progress=lambda done, total: done / 0)
    assert state(model) == before


def test_training_goes_on_after_generating() -> None:
    model = tiny_llama()
    model.train()
    generator(model).generate(UNEQUAL, SamplingSettings(max_new_tokens=4))
    model(input_ids=torch.tensor([UNEQUAL[0]]), labels=torch.tensor([UNEQUAL[0]])).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_dropout_is_off() -> None:
    model = tiny_llama(attention_dropout=0.5)
    expected = ids(generator(model).generate(UNEQUAL, SamplingSettings(max_new_tokens=6)))
    model.train()
    assert ids(generator(model).generate(UNEQUAL, SamplingSettings(max_new_tokens=6))) == expected


@WAYS
def test_peft_adapters_take_part(take_apart: bool) -> None:
    peft = pytest.importorskip("peft")
    model = tiny_llama()
    plain = ids(generator(model, take_apart=take_apart).generate(UNEQUAL, SamplingSettings(max_new_tokens=6)))
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).base_model.model
    answers = generator(adapted, take_apart=take_apart).generate(UNEQUAL, SamplingSettings(max_new_tokens=6))
    assert ids(answers) != plain
    assert_logp_is_the_training_forward(adapted.eval(), UNEQUAL, answers)

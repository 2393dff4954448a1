"""Laws of the plan's arithmetic."""

from dataclasses import dataclass, field
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from luthier.models.activations.levels import Level, Plannable
from luthier.models.activations.plan import (
    Budget,
    Correction,
    Option,
    Plan,
    choose,
    corrected,
    need_of,
    options_of,
    uniform,
    whole_of,
)

Options = tuple[Option, ...]


@st.composite
def layer(draw: st.DrawFn, offload: bool = True) -> Options:
    """A layer's options, sorted: an input, perhaps a middle, everything, perhaps nothing."""
    small = draw(st.integers(1, 50))
    large = small + draw(st.integers(0, 500))
    flops = draw(st.integers(1, 1000))
    options = [Option(Level.KEEP_INPUT, small, flops), Option(Level.KEEP_ALL, large, 0.0)]
    if draw(st.booleans()):
        middle = draw(st.integers(small, large))
        options.append(Option(Level.KEEP_ATTENTION, middle, draw(st.integers(0, flops))))
    if offload and draw(st.booleans()):
        options.append(Option(Level.OFFLOAD_INPUT, 0, flops))
    return tuple(sorted(options, key=lambda option: (option.bytes, -option.flops)))


models = st.lists(layer(), min_size=1, max_size=6)
tokens = st.integers(1, 100)
corrections = st.builds(Correction, st.floats(0.5, 1.0), st.floats(0, 50))


def chosen(layers: list[Options], plan: Plan) -> list[Option]:
    return [
        next(option for option in options if option.level is level)
        for options, level in zip(layers, plan.levels, strict=True)
    ]


def saved(layers: list[Options], options: list[Option]) -> float:
    """FLOPs that are not done again, per token."""
    most = sum(max(option.flops for option in each) for each in layers)
    return most - sum(option.flops for option in options)


@given(models, tokens, st.integers(0, 50_000), st.integers(0, 50_000), corrections, st.booleans())
def test_more_memory_never_keeps_less_of_any_layer(
    layers: list[Options], num: int, first: int, second: int, correction: Correction, offload: bool
) -> None:
    less, more = sorted((first, second))
    poor = chosen(layers, choose(layers, num, Budget(less, 100, correction), offload=offload))
    rich = chosen(layers, choose(layers, num, Budget(more, 100, correction), offload=offload))
    assert all(a.bytes <= b.bytes and a.flops >= b.flops for a, b in zip(poor, rich, strict=True))


@given(models, tokens, tokens, st.integers(0, 50_000))
def test_more_tokens_never_keep_more_of_any_layer(
    layers: list[Options], first: int, second: int, budget: int
) -> None:
    few, many = sorted((first, second))
    short, long = (chosen(layers, choose(layers, num, Budget(budget))) for num in (few, many))
    assert all(a.bytes >= b.bytes for a, b in zip(short, long, strict=True))


@given(models, tokens, st.integers(0, 50_000), corrections, st.booleans())
def test_it_stays_within_the_budget_whenever_anything_does(
    layers: list[Options], num: int, bytes: int, correction: Correction, offload: bool
) -> None:
    budget = Budget(bytes, 100, correction)
    plan = choose(layers, num, budget, offload=offload)
    allowed = [[o for o in each if offload or o.level is not Level.OFFLOAD_INPUT] for each in layers]
    least = min(need_of(each, whole_of(layers), num, budget) for each in product(*allowed))
    assert plan.fits == (least <= bytes)
    assert plan.need == need_of(chosen(layers, plan), whole_of(layers), num, budget)


@given(models, tokens, corrections)
def test_all_is_kept_when_all_fits(layers: list[Options], num: int, correction: Correction) -> None:
    everything = uniform(layers, Level.KEEP_ALL, num, Budget(0, 100, correction))
    plan = choose(layers, num, Budget(everything.need, 100, correction), offload=True)
    assert saved(layers, chosen(layers, plan)) == saved(
        layers, [min(o, key=lambda x: x.flops) for o in layers]
    )


@given(layer(offload=False), st.integers(2, 5), st.integers(0, 4_000))
def test_among_equal_layers_it_is_within_one_step_of_the_best(each: Options, num: int, bytes: int) -> None:
    layers = [each] * num
    plan = choose(layers, 1, Budget(bytes))
    if not plan.fits:
        return
    fitting = [c for c in product(*layers) if need_of(c, whole_of(layers), 1, Budget(bytes)) <= bytes]
    best = max(saved(layers, list(options)) for options in fitting)
    one_step = max(option.flops for option in each)
    assert saved(layers, chosen(layers, plan)) >= best - one_step


@given(models, tokens, st.integers(0, 50_000))
def test_inputs_leave_the_device_only_if_recomputing_alone_does_not_fit(
    layers: list[Options], num: int, bytes: int
) -> None:
    plan = choose(layers, num, Budget(bytes), offload=True)
    if Level.OFFLOAD_INPUT in plan.levels:
        assert not choose(layers, num, Budget(bytes), offload=False).fits
        inputs = [{option.level: option for option in each}[Level.KEEP_INPUT] for each in layers]
        assert all(a.bytes <= b.bytes for a, b in zip(chosen(layers, plan), inputs, strict=True))
    assert Level.OFFLOAD_INPUT not in choose(layers, num, Budget(bytes), offload=False).levels


def made(whole: int, flops: float) -> Options:
    return (Option(Level.KEEP_INPUT, 10, flops), Option(Level.KEEP_ALL, whole, 0.0))


def test_the_layer_that_saves_most_for_its_bytes_is_kept_first() -> None:
    layers = [made(100, 500.0), made(100, 900.0), made(40, 400.0), made(100, 500.0)]
    budget = need_of([layers[0][0], *(each[0] for each in layers[1:])], whole_of(layers), 1, Budget(0))
    order = []
    while True:
        plan = choose(layers, 1, Budget(budget))
        order += [i for i, level in enumerate(plan.levels) if level is Level.KEEP_ALL and i not in order]
        if len(order) == len(layers):
            break
        budget += 1
    assert order == [2, 1, 3, 0]  # 13 FLOPs a byte, 10, and of the equal ones the last


def test_the_last_layer_costs_nothing_to_keep() -> None:
    """It has all its activations when the backward pass begins, whether kept or made again."""
    layers = [made(100, 1.0)] * 3
    bare = uniform(layers, Level.KEEP_INPUT, 1, Budget(0)).need
    assert bare == 10 + 10 + 100
    assert choose(layers, 1, Budget(bare)).levels == (Level.KEEP_INPUT, Level.KEEP_INPUT, Level.KEEP_ALL)


@given(models, tokens, st.integers(0, 50_000), corrections, st.integers(0, 200))
def test_a_measured_plan_needs_what_was_measured(
    layers: list[Options], num: int, bytes: int, before: Correction, fixed: int
) -> None:
    budget = Budget(10**9, fixed, before)
    plan = choose(layers, num, budget)
    found = corrected(layers, plan, num, bytes, True, budget)
    need = need_of(chosen(layers, plan), whole_of(layers), num, Budget(0, fixed, found))
    floor = need_of(chosen(layers, plan), whole_of(layers), num, Budget(0, fixed, Correction(0.5)))
    assert abs(need - max(bytes, floor)) <= 1


@given(models, tokens, st.integers(0, 50_000), corrections)
def test_an_upper_bound_never_makes_the_formula_more_careful(
    layers: list[Options], num: int, bytes: int, before: Correction
) -> None:
    budget = Budget(10**9, 0, before)
    plan = choose(layers, num, budget)
    found = corrected(layers, plan, num, bytes, False, budget)
    assert found.scale <= before.scale and found.extra <= before.extra


@dataclass
class Layer:
    """The least that can be planned."""

    level: Level = Level.KEEP_ALL
    levels: tuple[Level, ...] = (Level.KEEP_ALL, Level.KEEP_ATTENTION, Level.KEEP_INPUT)
    sizes: dict[Level, int] = field(
        default_factory=lambda: {Level.KEEP_ALL: 9, Level.KEEP_ATTENTION: 3, Level.KEEP_INPUT: 1}
    )

    def bytes_per_token(self, level: Level) -> int:
        return self.sizes[level]

    def flops_per_token(self, level: Level) -> float:
        return 9.0 - self.sizes[level]


def test_options_come_from_the_layer_itself() -> None:
    assert isinstance(Layer(), Plannable)
    assert [(o.level, o.bytes, o.flops) for o in options_of(Layer())] == [
        (Level.KEEP_INPUT, 1, 8.0),
        (Level.KEEP_ATTENTION, 3, 6.0),
        (Level.KEEP_ALL, 9, 0.0),
    ]


def test_a_level_that_a_layer_does_not_know_becomes_keep_input() -> None:
    plan = uniform([options_of(Layer())], Level.OFFLOAD_INPUT, 1, Budget(100))
    assert plan.levels == (Level.KEEP_INPUT,)


def test_the_line_says_what_happens_in_which_memory() -> None:
    kept, half, again, away = Level.KEEP_ALL, Level.KEEP_ATTENTION, Level.KEEP_INPUT, Level.OFFLOAD_INPUT
    size = {"tokens": 4096, "need": 1_240_000_000, "budget": 9_800_000_000}
    assert Plan((kept,) * 30, **size).line() == (
        "activations: all 30 layers kept (1.2 of 9.8 GB for 4,096 tokens)"
    )
    assert Plan((again, half, half, kept), **size).line() == (
        "activations: 1 of 4 layers kept, 2 half recomputed, 1 recomputed (1.2 of 9.8 GB for 4,096 tokens)"
    )
    tight = Plan((away, again), tokens=9, need=2_000_000_000, budget=1_000_000_000)
    assert tight.line() == (
        "activations: 1 of 2 layers recomputed, 1 recomputed from RAM (2.0 of 1.0 GB for 9 tokens); "
        "if that is too much, lower train.tokens_per_micro_batch"
    )

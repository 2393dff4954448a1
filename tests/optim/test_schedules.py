"""What every schedule promises: warm-up, bounds, the end."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.optim.schedules import SHAPES, Schedule


@given(
    st.sampled_from(sorted(SHAPES)),
    st.integers(2, 400),
    st.floats(0, 0.5),
    st.floats(0, 0.99),
    st.floats(0.05, 0.5),
)
def test_every_schedule_rises_then_never_rises_again_and_ends_where_it_should(
    name: str, total: int, warmup: float, floor: float, decay: float
) -> None:
    schedule = Schedule(name, total, int(warmup * total), floor, decay)
    factors = [schedule(step) for step in range(total)]
    peak = schedule.warmup_steps
    assert all(factor == (step + 1) / peak for step, factor in enumerate(factors[:peak]))
    assert factors[peak] == pytest.approx(1) and all(floor - 1e-12 <= f <= 1 + 1e-12 for f in factors[peak:])
    assert all(a >= b - 1e-12 for a, b in zip(factors[peak:], factors[peak + 1 :], strict=False))
    assert schedule(total) == schedule(total + 5) == pytest.approx(1 if name == "constant" else floor)
    assert factors[-1] > floor  # no step at rate 0


def test_values_by_hand() -> None:
    assert Schedule("cosine", 10)(5) == pytest.approx(0.5)
    assert Schedule("cosine", 10)(2) == pytest.approx(0.5 * (1 + math.cos(0.2 * math.pi)))
    assert Schedule("linear", 10, min_ratio=0.2)(5) == pytest.approx(0.6)
    wsd = Schedule("wsd", 100, 10, decay_ratio=0.2)
    assert wsd(9) == 1 and wsd(80) == pytest.approx(1) and wsd(90) == pytest.approx(0.5)
    assert wsd(99) == pytest.approx(0.05)


def test_the_decay_of_wsd_by_steps_and_by_its_square_root() -> None:
    straight = Schedule("wsd", 100, 10, decay_steps=20)
    bent = Schedule("wsd", 100, 10, decay_steps=20, decay_shape="1-sqrt")
    assert [straight(step) for step in (80, 90, 99)] == pytest.approx([1, 0.5, 0.05])
    assert [bent(step) for step in (80, 85, 99)] == pytest.approx([1, 0.5, 1 - math.sqrt(0.95)])
    assert bent(79) == straight(79) == 1 and bent(100) == straight(100) == pytest.approx(0)


@given(st.integers(40, 400), st.integers(40, 400), st.floats(0, 0.5))
def test_the_stable_phase_of_wsd_does_not_know_how_long_it_is(one: int, other: int, floor: float) -> None:
    first, second = (Schedule("wsd", total, 5, floor, decay_steps=10) for total in (one, other))
    assert all(first(step) == second(step) for step in range(min(one, other) - 10))

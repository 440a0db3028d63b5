from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import ConfigError

Make = Callable[..., Any]
FORMS = ("constant", "cosine", "linear", "wsd", "inverse_sqrt")


def rule(form: str, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"schedule": form}
    if form in ("cosine", "linear", "wsd"):
        base["final"] = 1e-5
    if form == "wsd":
        base["decay"] = "20%"
    if form == "inverse_sqrt":
        base["warmup"] = "4 samples"
    return base | more


def phase(samples: int, rate: dict[str, Any]) -> tuple[int, dict[str, float], dict[str, Any]]:
    return samples, {"a": 1}, {"learning_rate": rate}


@given(st.sampled_from(FORMS), st.integers(1, 30), st.integers(1, 8), st.integers(0, 60))
def test_a_warmup_of_n_iterations_reaches_the_peak_on_the_nth(
    make_config: Make, rates_of: Make, form: str, iterations: int, batch: int, more: int
) -> None:
    samples = iterations * batch * 2 + more
    config = make_config([phase(samples, rule(form, peak=3e-4, warmup=f"{iterations} iterations"))], batch=batch)
    rates = rates_of(config)
    assert rates.at(0) == 0
    values = [rates.at(clock) for clock in range(iterations * batch + 1)]
    assert values[-1] == 3e-4
    assert values == sorted(values)
    assert values[batch] == pytest.approx(3e-4 / iterations)


@pytest.mark.parametrize("form", ["cosine", "linear", "wsd"])
@given(samples=st.integers(20, 500), warmup=st.integers(0, 10))
def test_the_last_iteration_of_a_phase_gets_exactly_the_final_value(
    make_config: Make, rates_of: Make, form: str, samples: int, warmup: int
) -> None:
    more = {"warmup": f"{warmup} samples"} if warmup else {}
    rates = rates_of(make_config([phase(samples, rule(form, peak=3e-4, **more)), phase(9, rule("constant"))]))
    assert rates.at(samples) == 1e-5
    assert rates.at(samples + 9) == 1e-5
    values = [rates.at(clock) for clock in range(warmup, samples + 1)]
    assert values[0] == 3e-4
    assert values == sorted(values, reverse=True)


@given(st.lists(st.sampled_from(FORMS), min_size=1, max_size=4), st.booleans())
def test_it_is_continuous_where_a_phase_goes_on_or_warms_up(
    make_config: Make, rates_of: Make, forms: list[str], again: bool
) -> None:
    more: dict[str, Any] = {"peak": 1e-3, "warmup": "50 samples"} if again else {}
    phases = [phase(400, rule(form, **(more | {"peak": 1e-3, "warmup": "50 samples"} if not k else more)))
              for k, form in enumerate(forms)]  # fmt: skip
    rates = rates_of(make_config(phases))
    values = [rates.at(clock) for clock in range(400 * len(forms) + 1)]
    steepest = 1e-3 / 50 if again or "inverse_sqrt" not in forms[1:] else 1e-3  # a scale of 4 samples falls steeply
    assert max(abs(b - a) for a, b in pairwise(values)) <= steepest * 1.001
    assert min(values) >= 0
    assert max(values) <= 1e-3


def test_the_forms_have_their_textbook_values(make_config: Make, rates_of: Make) -> None:
    at = {
        form: rates_of(make_config([phase(100, rule(form, peak=1.0, **more))])).at
        for form, more in (
            ("constant", {}),
            ("cosine", {"final": 0.1}),
            ("linear", {"final": 0.1}),
            ("wsd", {"final": 0.0}),
            ("inverse_sqrt", {"final": 0.25}),
        )
    }
    assert [at["constant"](clock) for clock in (1, 50, 100)] == [1, 1, 1]
    assert at["cosine"](25) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert at["linear"](25) == pytest.approx(0.775)
    assert [at["wsd"](clock) for clock in (1, 80, 90, 100)] == [1, 1, pytest.approx(0.5), 0]
    assert [at["inverse_sqrt"](clock) for clock in (2, 4, 16, 64, 100)] == [0.5, 1, 0.5, 0.25, 0.25]


def test_a_phase_without_peak_starts_where_the_last_one_ended(make_config: Make, rates_of: Make) -> None:
    phases = [phase(100, rule("cosine", peak=3e-4, final=3e-5)), phase(50, rule("linear", final=1e-6))]
    rates = rates_of(make_config(phases))
    assert rates.at(100) == 3e-5
    assert rates.at(125) == pytest.approx((3e-5 + 1e-6) / 2)
    assert rates.at(150) == 1e-6


def test_a_warmup_rises_from_the_last_phase_s_end(make_config: Make, rates_of: Make) -> None:
    again = rule("cosine", peak=3e-4, final=3e-5, warmup="10 iterations")
    rates = rates_of(make_config([phase(100, again), phase(100, again)], batch=2))
    assert rates.at(100) == 3e-5
    assert rates.at(110) == pytest.approx((3e-5 + 3e-4) / 2)
    assert rates.at(120) == 3e-4


@pytest.mark.parametrize(("decay", "length"), [("25%", 25), ("40 tokens", 10), ("7 samples", 7), ("3 iterations", 16)])
def test_the_decay_of_wsd_is_a_share_or_a_length_counted_from_the_end(
    make_config: Make, rates_of: Make, decay: str, length: int
) -> None:
    samples = 100
    rates = rates_of(
        make_config([phase(samples, rule("wsd", peak=1.0, final=0.0, decay=decay))], batch=7, seq_length=4)
    )
    assert rates.at(samples - length) == 1
    assert rates.at(samples - length + 1) < 1


def test_a_warmup_in_iterations_follows_the_ramp(make_config: Make, rates_of: Make) -> None:
    train = {"global_batch_size": 6, "batch_ramp": {"start": 2, "increment": 2, "samples": 20}}
    rates = rates_of(make_config([phase(60, rule("constant", peak=1.0, warmup="7 iterations"))], train=train))
    assert rates.at(18) == 1
    assert rates.at(17) < 1


@pytest.mark.parametrize("warmup", ["26 iterations", "101 samples", "404 tokens", "1000 iterations"])
def test_a_warmup_longer_than_its_phase_is_refused(make_config: Make, rates_of: Make, warmup: str) -> None:
    config = make_config([phase(100, rule("cosine", peak=1.0, warmup=warmup)), phase(900, rule("constant"))], batch=4)
    with pytest.raises(ConfigError) as caught:
        rates_of(config)
    (problem,) = caught.value.problems
    assert problem.where == "phases[0].learning_rate.warmup"
    assert f"warmup {warmup} is longer than phase 'p0' of 25 iterations" in problem.what
    assert problem.fix == "give at most 25 iterations, or lengthen the phase"


@pytest.mark.parametrize("decay", ["91 samples", "95%", "24 iterations", "26 iterations"])
def test_a_warmup_and_a_decay_longer_than_their_phase_are_refused(
    make_config: Make, rates_of: Make, decay: str
) -> None:
    config = make_config([phase(100, rule("wsd", peak=1.0, warmup="10 samples", decay=decay))], batch=4)
    with pytest.raises(ConfigError, match=r"decay: warmup plus decay .*(?s:.)*give at most 90 samples"):
        rates_of(config)


def test_every_phase_s_misfit_is_reported_at_once(make_config: Make, rates_of: Make) -> None:
    long = rule("cosine", peak=1.0, warmup="200 samples")
    with pytest.raises(ConfigError, match="2 problems"):
        rates_of(make_config([phase(100, long), phase(100, long)]))

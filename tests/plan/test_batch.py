from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import ConfigError
from megacode.config.quantity import Quantity
from megacode.config.training import Training
from megacode.plan.batch import placement
from megacode.plan.ramp import Ramp

Make = Callable[..., Any]
RAMPS = st.one_of(
    st.none(),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 150)).map(
        lambda t: {"start": t[0], "increment": t[1], "samples": t[3], "steps": t[2]}
    ),
)


def training(ramp: dict[str, int] | None) -> dict[str, Any]:
    if ramp is None:
        return {"global_batch_size": 4}
    wanted = {key: ramp[key] for key in ("start", "increment", "samples")}
    return {"global_batch_size": ramp["start"] + ramp["steps"] * ramp["increment"], "batch_ramp": wanted}


def megatrons_ramp(clock: int, train: dict[str, Any]) -> int:
    """Megatron's rule, from the meaning of its three numbers."""
    ramp, full = train.get("batch_ramp"), train["global_batch_size"]
    if ramp is None or clock >= ramp["samples"]:
        return int(full)
    steps = (full - ramp["start"]) // ramp["increment"]
    return int(ramp["start"] + clock * steps // ramp["samples"] * ramp["increment"])


@given(RAMPS, st.lists(st.integers(20, 130), min_size=1, max_size=4))
def test_iterations_are_contiguous_never_cross_a_phase_end_and_have_the_ramp_s_size(
    make_config: Make, clocks_of: Make, ramp: dict[str, int] | None, lengths: list[int]
) -> None:
    train = training(ramp)
    config = make_config([(length, {"a": 1}) for length in lengths], train=train)
    schedule, batches = clocks_of(config)
    ends = [phase.last_sample for phase in schedule.phases]
    clock, iteration = 0, 0
    while clock < schedule.total_samples:
        assert batches.iteration_at(clock) == iteration
        assert batches.clock_after(iteration) == clock
        end = min(end for end in ends if end > clock)
        after = batches.next(clock)
        assert after == min(end, clock + megatrons_ramp(clock, train))
        assert batches.batch_size(clock) == after - clock
        assert {batches.iteration_at(inside) for inside in range(clock + 1, after + 1)} == {iteration + 1}
        clock, iteration = after, iteration + 1
    assert clock == ends[-1]
    assert batches.total_iterations == iteration == batches.iterations(0, clock)
    assert batches.clock_after(iteration) == clock


@given(RAMPS, st.integers(1, 40), st.integers(0, 200))
def test_a_length_in_iterations_is_as_many_whole_batches(ramp: Any, iterations: int, first: int) -> None:
    train = training(ramp)
    clock = first
    for _ in range(iterations):
        clock += megatrons_ramp(clock, train)
    assert Ramp(Training(seq_length=4, **train)).after(first, iterations) == clock


@given(RAMPS, st.integers(1, 3000), st.integers(1, 60))
def test_a_length_in_tokens_becomes_the_nearest_iteration_boundary(
    make_config: Make, clocks_of: Make, ramp: dict[str, int] | None, tokens: int, before: int
) -> None:
    train = training(ramp)
    first = max(before, train["global_batch_size"])
    try:
        schedule, _ = clocks_of(make_config([(first, {"a": 1}), (f"{tokens} tokens", {"a": 1})], train=train))
    except ConfigError:
        assert tokens < 4 * megatrons_ramp(first, train)
        return
    boundaries = [first]
    while 4 * (boundaries[-1] - first) <= tokens:
        boundaries.append(boundaries[-1] + megatrons_ramp(boundaries[-1], train))
    distance = [abs(4 * (boundary - first) - tokens) for boundary in boundaries[1:]]
    assert abs(4 * schedule.phases[1].samples - tokens) == min(distance)


def test_lengths_in_samples_and_iterations_are_exact_and_tokens_are_rounded(make_config: Make, clocks_of: Make) -> None:
    blend = {"a": 1}
    config = make_config([(21, blend), ("3 iterations", blend), ("118 tokens", blend), ("120 tokens", blend)], batch=5)
    schedule, batches = clocks_of(config)
    assert [phase.samples for phase in schedule.phases] == [21, 15, 30, 30]
    assert [batches.batch_size(clock) for clock in (0, 15, 20, 21)] == [5, 5, 1, 5]


@pytest.mark.parametrize(
    ("length", "where", "what", "fix"),
    [
        ("79 tokens", "phases[1].tokens", "has 79 tokens, less than one global batch of 20 samples (80 tokens)",
         "give it at least tokens: 80, or train.global_batch_size at most 19"),
        ("3 tokens", "phases[1].tokens", "has 3 tokens, less than one global batch of 20 samples (80 tokens)",
         "give it at least tokens: 80"),
        ("19", "phases[1].samples", "has 19 samples, less than one global batch of 20 samples",
         "give it at least samples: 20, or train.global_batch_size at most 19"),
    ],
)  # fmt: skip
def test_a_phase_shorter_than_a_batch_is_refused_with_legal_numbers(
    make_config: Make, clocks_of: Make, length: str, where: str, what: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        clocks_of(make_config([(40, {"a": 1}), (length, {"a": 1})], batch=20))
    (problem,) = caught.value.problems
    assert (problem.where, problem.what, problem.fix) == (where, f"phase 'p1' {what}", fix)
    assert caught.value.exit_code == 2


def test_quantities_become_samples_at_a_clock(make_config: Make, clocks_of: Make) -> None:
    ramp = {"start": 2, "increment": 2, "samples": 20}
    config = make_config([(30, {"a": 1})], batch=6, seq_length=4, train={"batch_ramp": ramp, "global_batch_size": 6})
    _, batches = clocks_of(config)
    clocks = [batches.clock_after(iteration) for iteration in range(batches.total_iterations + 1)]
    assert clocks == [0, 2, 4, 6, 8, 10, 14, 18, 22, 28, 30]
    assert batches.samples(Quantity(count=7, unit="iterations"), 0) == 18
    assert batches.samples(Quantity(count=2, unit="iterations"), 18) == 10
    assert batches.samples(Quantity(count=12, unit="iterations"), 0) == 42
    assert batches.samples(Quantity(count=7, unit="samples"), 18) == 7
    assert [batches.samples(Quantity(count=n, unit="tokens"), 0) for n in (1, 2, 28, 30)] == [0, 1, 7, 8]


def test_a_clock_off_the_batch_boundaries_goes_on_from_there(make_config: Make, clocks_of: Make) -> None:
    _, batches = clocks_of(make_config([(50, {"a": 1}), (20, {"a": 1})], batch=20))
    assert batches.next(7) == 27
    assert batches.next(47) == 50
    assert batches.iteration_at(7) == 1


@given(st.integers(1, 600), st.integers(0, 10**12), st.integers())
def test_placement_is_a_bijection_of_the_batch(size: int, first: int, seed: int) -> None:
    slots = placement(seed, first, size)
    assert slots.dtype == np.int64
    assert np.array_equal(np.sort(slots), np.arange(first, first + size))


def test_placement_differs_from_batch_to_batch_and_locks_no_slot_to_a_source(
    make_config: Make, schedule_of: Make
) -> None:
    schedule = schedule_of(make_config([(6400, {"a": 0.5, "b": 0.5})]), {"a": 99999, "b": 99999})
    source = schedule.draws(np.arange(6400)).source_id
    per_slot = np.stack([source[placement(1234, first, 64)] for first in range(0, 6400, 64)]).mean(axis=0)
    assert 0.2 < per_slot.min() < per_slot.max() < 0.8
    assert source.reshape(100, 64).mean(axis=0).max() == 1  # without placement a slot would see one source alone

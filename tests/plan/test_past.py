"""What a changed past repeats and loses, against counting it window by window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.plan.past import lost, render_lost, unknown_loss
from megacode.plan.phases import Schedule, SourceSize, build_schedule

NAMES = ("a", "b", "c")
Make = Callable[..., Any]


@st.composite
def phases(draw: st.DrawFn) -> list[Any]:
    blend = st.fixed_dictionaries(dict.fromkeys(NAMES, st.sampled_from([0, 1, 2]))).filter(lambda b: any(b.values()))
    rule = st.builds(lambda r: {"repeat": r}, st.sampled_from(["continue", "continue", "restart"]))
    return draw(st.lists(st.tuples(st.integers(20, 90), blend, rule), min_size=1, max_size=3))


def windows_before(schedule: Schedule, clock: int, name: str) -> set[tuple[int, int]]:
    draws = (schedule.draw(sample) for sample in range(min(clock, schedule.total_samples)))
    return {(draw.epoch, draw.window) for draw in draws if draw.source == name}


@given(phases(), phases(), st.integers(0, 60), st.sampled_from([1, 2]))
@settings(max_examples=60)
def test_what_is_repeated_and_lost_is_what_counting_finds(
    make_config: Make, schedule_of: Make, old: Any, new: Any, clock: int, seed: int
) -> None:
    tokens = {"a": 90, "b": 150, "c": 801}
    was = schedule_of(make_config(old, sources=NAMES, seed=1), tokens)
    now = schedule_of(make_config(new, sources=NAMES, seed=seed), tokens)
    clock = min(clock, was.total_samples)
    report = lost(was, now, clock)
    assert report["exact"]
    for name in NAMES:
        read, taken = windows_before(was, clock, name), windows_before(now, clock, name)
        if not read and not taken:
            assert name not in report["sources"]
            continue
        row = report["sources"][name]
        assert (row["read"], row["taken"]) == (len(read), len(taken))
        assert (row["repeated"], row["lost"]) == (len(read - taken), len(taken - read))


def one(make_config: Make, seed: int = 1, tokens: int = 400_001, identity: str = "x", **more: Any) -> Schedule:
    config = make_config([(60_000, {"a": 1})], seed=seed, **more)
    return build_schedule(config, {"a": SourceSize("a", tokens, identity=identity)})


def test_an_unchanged_order_loses_nothing(make_config: Make) -> None:
    row = lost(one(make_config), one(make_config), 50_000)["sources"]["a"]
    assert (row["read"], row["taken"], row["repeated"], row["lost"]) == (50_000, 50_000, 0, 0)


def test_beyond_the_exact_length_a_sample_of_the_windows_estimates_it(make_config: Make) -> None:
    old, new = one(make_config), one(make_config, seed=2)
    exact, about = (lost(old, new, 50_000, exact_up_to=limit)["sources"]["a"] for limit in (50_000, 49_999))
    assert exact["exact"]
    assert not about["exact"]
    assert exact["repeated"] == pytest.approx(25_000, rel=0.02)
    assert about["repeated"] == pytest.approx(exact["repeated"], rel=0.05)
    assert about["lost"] == about["repeated"]
    assert "about " in " ".join(render_lost(lost(old, new, 50_000, exact_up_to=1)))


def test_under_one_seed_it_is_exact_at_any_length(make_config: Make) -> None:
    old = build_schedule(make_config([(10**9, {"a": 1})]), {"a": SourceSize("a", 10**12)})
    new = build_schedule(make_config([(10**9, {"a": 1, "b": 3})]), {n: SourceSize(n, 10**12) for n in "ab"})
    report = lost(old, new, 10**9)
    assert report["exact"]
    assert report["sources"]["a"]["repeated"] == 750_000_000
    assert report["sources"]["b"]["lost"] == 750_000_000


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokens": 400_009}, "its data set had 400,001 training tokens (x) and has 400,009 (x)"),
        ({"identity": "y"}, "its data set had 400,001 training tokens (x) and has 400,001 (y)"),
        ({"seq_length": 8}, "seq_length was 4 and is now 8"),
    ],
)
def test_other_windows_cannot_be_compared(make_config: Make, change: dict[str, Any], why: str) -> None:
    report = lost(one(make_config), one(make_config, **change), 1000)
    assert not report["comparable"]
    assert report["sources"]["a"]["repeated"] is None
    assert render_lost(report)[1] == f"a: cannot be compared: {why}; any window may be read again"


def test_an_order_that_cannot_be_made_again_is_said() -> None:
    (line,) = render_lost(unknown_loss(10))
    assert "cannot be compared" in line
    assert "any window may be read again" in line

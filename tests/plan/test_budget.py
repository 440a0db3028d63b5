from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import PlanError
from megacode.config.run import RunConfig
from megacode.plan.budget import Allotment, _round_down, _round_up, allot
from megacode.plan.ramp import Extent

Make = Callable[..., Any]
NAMES = ("code", "markup", "text", "web")


def allotted(config: RunConfig, windows: dict[str, int]) -> list[Allotment]:
    return allot(config, [Extent(phase.samples or 0, phase.samples or 0) for phase in config.phases], windows)


@st.composite
def capped_runs(draw: st.DrawFn) -> tuple[list[tuple[int, dict[str, float]]], dict[str, float], dict[str, int]]:
    weight = st.sampled_from([0, 0.1, 0.3, 1, 2.5])
    blend = st.fixed_dictionaries(dict.fromkeys(NAMES, weight)).filter(lambda b: any(b.values()))
    phases = draw(st.lists(st.tuples(st.integers(1, 300), blend), min_size=1, max_size=4))
    caps = draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.5, 1.0, 2.5, 4.0]), max_size=4))
    windows = {name: draw(st.integers(1, 200)) for name in NAMES}
    return phases, caps, windows


def test_without_caps_weights_decide_and_are_normalised(make_config: Make) -> None:
    (allotment,) = allotted(make_config([(100, {"a": 3, "b": 1, "c": 0})]), {"a": 10, "b": 10, "c": 10})
    assert allotment == Allotment({"a": 75, "b": 25}, {"a": 75, "b": 25}, {"a": 0.75, "b": 0.25})


def test_a_cap_that_does_not_bind_changes_nothing(make_config: Make) -> None:
    phases = [(100, {"a": 0.4, "b": 0.6}), (50, {"a": 0.5, "b": 0.5})]
    plain = allotted(make_config(phases), {"a": 30, "b": 1000})
    for policy in ("error", "spread"):
        config = make_config(phases, caps={"a": 3})
        assert allotted(config.model_copy(update={"caps": policy}), {"a": 30, "b": 1000}) == plain


def test_a_cap_that_binds_is_an_error_that_says_what_to_change(make_config: Make) -> None:
    config = make_config([(100, {"a": 0.4, "b": 0.6}), (100, {"a": 0.4, "b": 0.6})], caps={"a": 1.5})
    with pytest.raises(PlanError) as caught:
        allotted(config, {"a": 40, "b": 1000})
    (problem,) = caught.value.problems
    assert problem.where == "phases[1].blend.a"
    assert problem.what == "source 'a' would be read 2.00 times by the end of phase 'p1', more than its max_epochs 1.5"
    assert problem.fix == (
        "lower its weight to 0.15, raise sources.a.max_epochs to 2, or set caps: spread to give its share to the others"
    )
    assert caught.value.exit_code == 3


def test_every_source_that_passes_its_cap_is_named_once(make_config: Make) -> None:
    blend = {"a": 0.3, "b": 0.3, "c": 0.4}
    config = make_config([(100, blend), (100, blend), (100, blend)], caps={"a": 1, "b": 2})
    with pytest.raises(PlanError) as caught:
        allotted(config, {"a": 20, "b": 20, "c": 999})
    assert [problem.where for problem in caught.value.problems] == ["phases[0].blend.a", "phases[1].blend.b"]
    assert "and remove it from later phases" in caught.value.problems[0].fix
    assert "raise sources.a.max_epochs to 4.5" in caught.value.problems[0].fix


def test_a_source_used_up_before_is_to_be_removed_and_a_lone_source_to_be_shortened(make_config: Make) -> None:
    config = make_config([(50, {"a": 1}), (50, {"a": 0.5, "b": 0.5})], caps={"a": 1})
    with pytest.raises(PlanError, match="remove 'a' from this blend"):
        allotted(config, {"a": 50, "b": 1000})
    with pytest.raises(
        PlanError, match=r"shorten the phase to samples: 50, or raise sources\.a\.max_epochs to 1\.6"
    ) as caught:
        allotted(make_config([(80, {"a": 1})], caps={"a": 1}), {"a": 50})
    assert "spread" not in str(caught.value)
    with pytest.raises(PlanError, match="remove the phase, or raise"):
        allotted(make_config([(50, {"a": 1}), (50, {"a": 1})], caps={"a": 1}), {"a": 50})


@given(
    st.integers(20, 400),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(5, 300),
    st.sampled_from([0.5, 1.0, 2.0, 3.3]),
)
def test_doing_what_the_error_says_mends_it(
    make_config: Make, samples: int, a: int, b: int, windows: int, cap: float
) -> None:
    blend = {"a": a / 10, "b": b / 10}
    sizes = {"a": windows, "b": 10**6}
    try:
        allotted(make_config([(samples, blend)], caps={"a": cap}), sizes)
    except PlanError as error:
        fix = str(error)
    else:
        return
    lower = re.search(r"lower its weight to ([\d.]+),", fix)
    raised = re.search(r"max_epochs to ([\d.]+),", fix)
    assert lower
    assert raised
    allotted(make_config([(samples, blend | {"a": float(lower[1])})], caps={"a": cap}), sizes)
    allotted(make_config([(samples, blend)], caps={"a": float(raised[1])}), sizes)
    allotted(make_config([(samples, blend)], caps={"a": cap}).model_copy(update={"caps": "spread"}), sizes)


@given(capped_runs())
def test_a_plan_that_passes_keeps_every_cap(
    make_config: Make, run: tuple[list[tuple[int, dict[str, float]]], dict[str, float], dict[str, int]]
) -> None:
    phases, caps, windows = run
    for policy in ("error", "spread"):
        config = make_config(phases, caps=caps, sources=NAMES).model_copy(update={"caps": policy})
        try:
            allotments = allotted(config, windows)
        except PlanError:
            assert caps
            continue
        assert len(allotments) == len(phases) > 0
        for (samples, _), allotment in zip(phases, allotments, strict=True):
            assert sum(allotment.counts.values()) == samples
            assert min(allotment.counts.values()) >= 0
        for name, cap in caps.items():
            assert sum(allotment.counts.get(name, 0) for allotment in allotments) <= cap * windows[name]


@given(capped_runs())
def test_spread_gives_a_clipped_share_to_the_others_by_their_weights(
    make_config: Make, run: tuple[list[tuple[int, dict[str, float]]], dict[str, float], dict[str, int]]
) -> None:
    phases, caps, windows = run
    samples, blend = phases[0]
    config = make_config(phases[:1], caps=caps, sources=NAMES).model_copy(update={"caps": "spread"})
    try:
        (allotment,) = allotted(config, windows)
    except PlanError:
        active = [name for name, weight in blend.items() if weight]
        assert all(name in caps for name in active)
        assert sum(int(caps[name] * windows[name]) for name in active) < samples
        return
    for name in allotment.clipped:
        assert allotment.counts[name] == int(caps[name] * windows[name])
        assert allotment.counts[name] < allotment.weights[name] * samples
    full = [
        name for name in allotment.counts if name in caps and allotment.counts[name] == int(caps[name] * windows[name])
    ]
    free = [name for name in allotment.counts if name not in full]
    left = samples - sum(allotment.counts[name] for name in full)
    for name in free:
        assert abs(allotment.counts[name] - left * blend[name] / sum(blend[other] for other in free)) < 1


@given(capped_runs())
def test_spread_never_looks_at_later_phases(
    make_config: Make, run: tuple[list[tuple[int, dict[str, float]]], dict[str, float], dict[str, int]]
) -> None:
    phases, caps, windows = run
    config = make_config(phases, caps=caps, sources=NAMES).model_copy(update={"caps": "spread"})
    try:
        whole = allotted(config, windows)
    except PlanError:
        assert caps
        return
    assert len(whole) == len(phases) > 0
    for kept in range(1, len(phases)):
        assert allotted(config.model_copy(update={"phases": config.phases[:kept]}), windows) == whole[:kept]


def test_spread_with_nothing_left_says_what_to_change(make_config: Make) -> None:
    config = make_config([(100, {"a": 0.5, "b": 0.5})], caps={"a": 1, "b": 1}).model_copy(update={"caps": "spread"})
    with pytest.raises(PlanError) as caught:
        allotted(config, {"a": 30, "b": 40})
    (problem,) = caught.value.problems
    assert problem.what == "phase 'p0' needs 100 samples, but its sources have 70 left (a 30, b 40)"
    assert problem.fix == (
        "shorten the phase to samples: 70, raise sources.b.max_epochs to 1.75, or add a source without max_epochs"
    )
    for mended in (
        make_config([(70, {"a": 0.5, "b": 0.5})], caps={"a": 1, "b": 1}),
        make_config([(100, {"a": 0.5, "b": 0.5})], caps={"a": 1, "b": 1.75}),
        make_config([(100, {"a": 0.5, "b": 0.5, "c": 0.1})], caps={"a": 1, "b": 1}),
    ):
        spread = mended.model_copy(update={"caps": "spread"})
        sizes = {name: {"a": 30, "b": 40, "c": 1000}[name] for name in spread.sources}
        assert sum(allotted(spread, sizes)[0].counts.values()) == mended.phases[0].samples


def test_what_rounding_owes_crosses_into_the_next_phase(make_config: Make) -> None:
    blend = {"a": 1, "b": 1, "c": 1}
    allotments = allotted(make_config([(100, blend), (100, blend), (100, blend)]), dict.fromkeys("abc", 1000))
    assert [list(allotment.counts.values()) for allotment in allotments] == [[34, 33, 33], [33, 34, 33], [33, 33, 34]]


@given(st.fractions(min_value=Fraction(1, 10**7), max_value=10**7))
def test_suggested_numbers_err_on_the_safe_side(value: Fraction) -> None:
    assert value <= Fraction(_round_up(value)) < value + Fraction(1, 100)
    assert value * Fraction(98, 100) < Fraction(_round_down(value)) <= value

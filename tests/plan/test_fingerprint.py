from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from megacode.base.errors import CheckpointError
from megacode.plan.phases import Schedule, SourceSize, build_schedule, prove_past

Make = Callable[..., Any]
PHASES = [(60, {"a": 0.6, "b": 0.4}), (40, {"a": 0.2, "b": 0.8}), (30, {"a": 1})]


def sized(a: int = 90, b: int = 70, identity: str = "aaaa") -> dict[str, SourceSize]:
    return {"a": SourceSize("a", a, identity=identity), "b": SourceSize("b", b, identity="bbbb")}


@pytest.fixture
def former(make_config: Make) -> list[dict[str, Any]]:
    """The chain as a checkpoint gives it back: through JSON."""
    chain: list[dict[str, Any]] = json.loads(json.dumps(build_schedule(make_config(PHASES), sized()).fingerprints()))
    return chain


def hashes(schedule: Schedule) -> list[str]:
    return [link["fingerprint"] for link in schedule.fingerprints()]


def test_what_the_order_does_not_depend_on_is_not_in_the_fingerprint(make_config: Make) -> None:
    plain = hashes(build_schedule(make_config(PHASES), sized()))
    rate = {"learning_rate": {"schedule": "linear", "peak": 1.0, "final": 0.1}, "name": "other"}
    renamed = [(60, {"b": 4, "a": 6, "c": 0}, rate), *PHASES[1:]]
    other = make_config(renamed, batch=30, sources=["unused"], caps={"a": 9}, parallel={"tensor": 2})
    assert hashes(build_schedule(other, sized())) == plain


@pytest.mark.parametrize(
    ("first_changed", "phases", "changes", "sizes"),
    [
        (0, PHASES, {"seed": 7}, {}),
        (0, PHASES, {"seq_length": 5}, {}),
        (0, PHASES, {}, {"a": 91}),
        (0, PHASES, {}, {"identity": "a2"}),
        (0, [(61, PHASES[0][1]), *PHASES[1:]], {}, {}),
        (0, [(60, {"a": 0.5, "b": 0.5}), *PHASES[1:]], {}, {}),
        (1, [PHASES[0], (40, {"a": 0.3, "b": 0.7}), PHASES[2]], {}, {}),
        (1, [PHASES[0], (*PHASES[1], {"repeat": "restart"}), PHASES[2]], {}, {}),
        (2, [*PHASES[:2], (*PHASES[2], {"repeat": {"a": "restart"}})], {}, {}),
        (3, [*PHASES, (10, {"b": 1})], {}, {}),
    ],
)
def test_the_chain_changes_from_the_first_phase_whose_order_changes(
    make_config: Make, first_changed: int, phases: list[Any], changes: dict[str, Any], sizes: dict[str, Any]
) -> None:
    before = hashes(build_schedule(make_config(PHASES), sized()))
    after = hashes(build_schedule(make_config(phases, **changes), sized(**sizes)))
    assert after[:first_changed] == before[:first_changed]
    assert not set(after[first_changed:]) & set(before[first_changed:])


@pytest.mark.parametrize("consumed", [1, 59, 60])
def test_a_changed_future_is_accepted(make_config: Make, former: list[dict[str, Any]], consumed: int) -> None:
    for phases in (PHASES, PHASES[:1], [PHASES[0], (500, {"b": 1}), (7, {"c": 1})]):
        prove_past(build_schedule(make_config(phases), sized() | {"c": SourceSize("c", 50)}), former, consumed)
    prove_past(build_schedule(make_config(PHASES, seed=99), sized()), former, 0)


def refused(schedule: Schedule, former: list[dict[str, Any]], consumed: int) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        prove_past(schedule, former, consumed)
    assert caught.value.exit_code == 2
    assert "start a new run from the checkpoint's weights" in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "sizes", "where", "said"),
    [
        ({"seed": 7}, {}, "seed", "the run has already read from phase 'p0' with seed 1234, which is now 7"),
        ({"seq_length": 5}, {}, "train.seq_length", "with seq_length 4, which is now 5"),
        ({}, {"a": 91}, "sources.a", "'a' had 90 training tokens and now has 91"),
        ({}, {"identity": "a2"}, "sources.a", "'a' had the content hash aaaa and now has a2"),
    ],
)
def test_a_changed_run_or_source_is_refused_with_the_difference(
    make_config: Make,
    former: list[dict[str, Any]],
    changes: dict[str, Any],
    sizes: dict[str, Any],
    where: str,
    said: str,
) -> None:
    error = refused(build_schedule(make_config(PHASES, **changes), sized(**sizes)), former, 1)
    assert error.problems[0].where == where
    assert said in error.problems[0].what


def test_a_changed_blend_is_refused_where_it_was_read_and_not_before(
    make_config: Make, former: list[dict[str, Any]]
) -> None:
    schedule = build_schedule(make_config([PHASES[0], (40, {"a": 0.5, "b": 0.5}), PHASES[2]]), sized())
    prove_past(schedule, former, 60)
    error = refused(schedule, former, 61)
    assert [problem.where for problem in error.problems] == ["phases[1].blend.a", "phases[1].blend.b"]
    assert "'a' gave it 8 samples and would now give 20" in error.problems[0].what
    assert "restore the blends, lengths and caps" in error.problems[0].fix


def test_a_changed_length_is_refused_with_the_number_to_write(make_config: Make, former: list[dict[str, Any]]) -> None:
    error = refused(build_schedule(make_config([(50, PHASES[0][1]), *PHASES[1:]]), sized()), former, 10)
    (problem,) = error.problems
    assert problem.where == "phases[0]"
    assert "with a length of 60 samples, which is now 50" in problem.what
    assert "set its length to samples: 60" in problem.fix


def test_a_changed_start_is_refused_at_repeat(make_config: Make, former: list[dict[str, Any]]) -> None:
    phases = [*PHASES[:2], (*PHASES[2], {"repeat": "restart"})]
    (problem,) = refused(build_schedule(make_config(phases), sized()), former, 101).problems
    assert problem.where == "phases[2].repeat.a"
    assert "'a' started in it at its sample 44 and would now start at 0" in problem.what


def test_a_source_that_is_new_in_the_past_is_refused(make_config: Make, former: list[dict[str, Any]]) -> None:
    phases = [(60, {"a": 0.6, "c": 0.4}), *PHASES[1:]]
    error = refused(build_schedule(make_config(phases), sized() | {"c": SourceSize("c", 50)}), former, 1)
    assert [problem.where for problem in error.problems] == ["phases[0].blend.b", "phases[0].blend.c"]
    assert "'b' gave it 24 samples and would now give 0" in error.problems[0].what


def test_a_phase_that_was_read_and_is_gone_is_refused(make_config: Make, former: list[dict[str, Any]]) -> None:
    error = refused(build_schedule(make_config(PHASES[:1]), sized()), former, 80)
    assert "the run has already read from phase 'p1', which the config no longer has" in str(error)
    assert "samples: 40" in str(error)


def test_a_chain_of_another_law_is_refused(make_config: Make, former: list[dict[str, Any]]) -> None:
    former[0]["fingerprint"] = "0" * 64
    with pytest.raises(CheckpointError, match=r"(?s)another version of megacode.*resume with the version"):
        prove_past(build_schedule(make_config(PHASES), sized()), former, 1)

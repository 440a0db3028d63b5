"""A phase that is left early is the beginning of its whole, and the next one goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import CheckpointError, ConfigError, PlanError
from megacode.plan.batch import BatchSchedule
from megacode.plan.learning_rate import LearningRateSchedule
from megacode.plan.phases import Schedule, SourceSize, build_schedule, prove_past, windows

NAMES = ("code", "text", "web")
Make = Callable[..., Any]


@dataclass
class Branch:
    """A trunk, the phase in which it is left, after how many samples, and what follows."""

    trunk: list[tuple[int, dict[str, float], dict[str, Any]]]
    tokens: dict[str, int]
    caps: dict[str, float]
    number: int
    until: int
    after: tuple[int, dict[str, float], dict[str, Any]]

    def phases(self) -> list[Any]:
        length, blend, more = self.trunk[self.number]
        cut = (length, blend, {**more, "until": f"{self.until} samples"})
        return [*self.trunk[: self.number], cut, self.after]

    @property
    def clock(self) -> int:
        return sum(length for length, *_ in self.trunk[: self.number]) + self.until


@st.composite
def branches(draw: st.DrawFn, restarts: bool = False) -> Branch:
    tokens = {name: draw(st.integers(5, 200)) for name in NAMES}
    weight = st.sampled_from([0, 0.1, 0.25, 0.4, 1, 2])
    blend = st.fixed_dictionaries(dict.fromkeys(NAMES, weight)).filter(lambda b: any(b.values()))
    repeat = st.sampled_from(["continue", "restart"] if restarts else ["continue"])
    rule = st.builds(lambda r: {"repeat": r}, repeat)
    phase = st.tuples(st.integers(1, 90), blend, rule)
    trunk = draw(st.lists(phase, min_size=1, max_size=3))
    caps = draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from([0.5, 1.0, 3.0]), max_size=2))
    number = draw(st.integers(0, len(trunk) - 1))
    return Branch(trunk, tokens, caps, number, draw(st.integers(1, trunk[number][0])), draw(phase))


def both(make_config: Make, schedule_of: Make, branch: Branch, policy: str) -> tuple[Schedule, Schedule] | None:
    """Return the trunk's schedule and the branch's, or None where a cap forbids one of them."""
    configs = [make_config(phases, caps=branch.caps, sources=NAMES) for phases in (branch.trunk, branch.phases())]
    try:
        trunk, cut = (schedule_of(c.model_copy(update={"caps": policy}), branch.tokens) for c in configs)
    except PlanError:
        return None
    return trunk, cut


@pytest.mark.parametrize("policy", ["error", "spread"])
@given(branch=branches(restarts=True))
@settings(max_examples=60)
def test_up_to_the_cut_the_order_is_the_trunk_s_bit_for_bit(
    make_config: Make, schedule_of: Make, policy: str, branch: Branch
) -> None:
    made = both(make_config, schedule_of, branch, policy)
    if made is None:
        return
    trunk, cut = made
    assert [trunk.draw(k) for k in range(branch.clock)] == [cut.draw(k) for k in range(branch.clock)]
    assert cut.phases[branch.number].samples == branch.until
    assert cut.phases[-1].first_sample == branch.clock
    assert trunk.counts_at(branch.clock) == cut.counts_at(branch.clock)
    for name, cap in branch.caps.items():
        assert cut.counts_at(cut.total_samples)[name] <= cap * windows(branch.tokens[name], 4)


@given(branch=branches())
@settings(max_examples=60)
def test_no_window_comes_twice_before_its_source_is_exhausted_across_a_cut(
    make_config: Make, schedule_of: Make, branch: Branch
) -> None:
    branch.caps = {}
    made = both(make_config, schedule_of, branch, "error")
    assert made is not None
    draws = [made[1].draw(sample) for sample in range(made[1].total_samples)]
    assert draws
    for name, tokens in branch.tokens.items():
        stream = [(draw.epoch, draw.window) for draw in draws if draw.source == name]
        count = windows(tokens, 4)
        for epoch in range(len(stream) // count + 1):
            part = stream[epoch * count : (epoch + 1) * count]
            assert all(where == epoch for where, _ in part)
            assert len({window for _, window in part}) == len(part)


@given(branch=branches(restarts=True), data=st.data())
@settings(max_examples=60)
def test_a_checkpoint_belongs_to_trunk_and_branch_up_to_the_cut_and_to_one_of_them_behind_it(
    make_config: Make, schedule_of: Make, branch: Branch, data: st.DataObject
) -> None:
    branch.caps = {}
    made = both(make_config, schedule_of, branch, "error")
    assert made is not None
    trunk, cut = (json.loads(json.dumps(schedule.fingerprints())) for schedule in made)
    before = data.draw(st.integers(0, branch.clock))
    for schedule in made:
        prove_past(schedule, trunk, before)
        prove_past(schedule, cut, before)
    if branch.clock < made[0].total_samples and made[1].phases[branch.number].left_early:
        behind = data.draw(st.integers(branch.clock + 1, made[0].phases[branch.number].last_sample))
        with pytest.raises(CheckpointError, match="and the config ends it after"):
            prove_past(made[1], trunk, behind)
        with pytest.raises(CheckpointError, match="the run left phase"):
            prove_past(made[0], cut, branch.clock + 1)


def cut_links(make_config: Make, until: int) -> tuple[Schedule, list[dict[str, Any]]]:
    phases = [(60, {"a": 1}, {"until": f"{until} samples"}), (40, {"b": 1})]
    schedule = build_schedule(make_config(phases), {"a": SourceSize("a", 90), "b": SourceSize("b", 70)})
    return schedule, schedule.fingerprints()


def test_what_follows_a_cut_depends_on_where_it_is(make_config: Make) -> None:
    (_, one), (_, other) = cut_links(make_config, 30), cut_links(make_config, 31)
    assert one[0]["fingerprint"] == other[0]["fingerprint"]
    assert one[1]["fingerprint"] != other[1]["fingerprint"]


def test_a_clock_behind_the_cut_is_refused_with_what_to_start_from(make_config: Make) -> None:
    _, trunk = cut_links(make_config, 60)
    with pytest.raises(CheckpointError) as caught:
        prove_past(cut_links(make_config, 30)[0], trunk, 42)
    (problem,) = caught.value.problems
    assert problem.where == "phases[0].until"
    assert problem.what == "the checkpoint has read 42 samples of phase 'p0', and the config ends it after 30"
    assert problem.fix == "start from a checkpoint of sample 30 or earlier, or raise until to 42 samples or more"
    assert caught.value.exit_code == 2


def test_a_moved_cut_behind_which_the_run_stands_is_refused(make_config: Make) -> None:
    _, former = cut_links(make_config, 30)
    with pytest.raises(CheckpointError, match=r"(?s)left phase 'p0' after 30 .* after 50.*set until: 30 samples"):
        prove_past(cut_links(make_config, 50)[0], former, 35)


@pytest.mark.parametrize(
    ("length", "until", "read"),
    [
        ("60 samples", "7 samples", 7),
        ("60 samples", "3 iterations", 12),
        ("60 samples", "57 tokens", 16),
        ("60 samples", "60 samples", 60),
        ("58 samples", "15 iterations", 58),
        ("58 samples", "232 tokens", 58),
        ("15 iterations", "240 tokens", 60),
        ("240 tokens", "9 iterations", 36),
    ],
)
def test_until_is_a_clock_in_the_phase(
    make_config: Make, schedule_of: Make, length: str, until: str, read: int
) -> None:
    config = make_config([(length, {"a": 1}, {"until": until}), (8, {"a": 1})], batch=4)
    schedule = schedule_of(config, {"a": 1000})
    assert schedule.phases[0].samples == read
    assert BatchSchedule(config, schedule).iteration_at(read) == -(-read // 4)


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("16 iterations", "ends early after 16 iterations, but has only 15 iterations"),
        ("3 samples", "ends early after 3 samples, less than one global batch of 4 samples"),
        ("9 tokens", r"less than one global batch of 4 samples \(16 tokens\)(?s:.*)give it at least 16 tokens"),
    ],
)
def test_an_until_outside_the_phase_is_refused(make_config: Make, schedule_of: Make, until: str, said: str) -> None:
    config = make_config([(60, {"a": 1}, {"until": until})], batch=4)
    with pytest.raises(ConfigError, match=said) as caught:
        schedule_of(config, {"a": 1000})
    assert caught.value.problems[0].where == "phases[0].until"


RATES = {
    "cosine": {"schedule": "cosine", "peak": 1e-3, "final": 1e-5, "warmup": "5 iterations"},
    "wsd": {"schedule": "wsd", "peak": 1e-3, "final": 0.0, "warmup": "11 samples", "decay": "7 iterations"},
    "inverse_sqrt": {"schedule": "inverse_sqrt", "peak": 1e-3, "warmup": "6 iterations"},
}


@pytest.mark.parametrize("form", RATES)
@given(until=st.integers(4, 100))
def test_the_learning_rate_is_the_trunk_s_up_to_the_cut_and_goes_on_from_there(
    make_config: Make, rates_of: Make, form: str, until: int
) -> None:
    train = {"global_batch_size": 4, "batch_ramp": {"start": 2, "increment": 1, "samples": 30}}
    decay = (50, {"a": 1}, {"learning_rate": {"schedule": "linear", "final": 0.0}})
    trunk: LearningRateSchedule = rates_of(make_config([(100, {"a": 1}, {"learning_rate": RATES[form]})], train=train))
    left = (100, {"a": 1}, {"learning_rate": RATES[form], "until": f"{until} samples"})
    branch: LearningRateSchedule = rates_of(make_config([left, decay], train=train))
    values = [branch.at(clock) for clock in range(until + 51)]
    assert values[: until + 1] == [trunk.at(clock) for clock in range(until + 1)]
    assert max(abs(b - a) for a, b in pairwise(values[until:])) <= 1e-3 / 50 * 1.001
    assert values[-1] == 0


def test_a_warmup_that_outlasts_the_cut_is_cut_with_it(make_config: Make, rates_of: Make) -> None:
    rate = {"schedule": "constant", "peak": 1.0, "warmup": "20 iterations"}
    phases = [(100, {"a": 1}, {"learning_rate": rate, "until": "41 samples"}), (50, {"a": 1}, {"learning_rate": {
        "schedule": "constant"}})]  # fmt: skip
    rates = rates_of(make_config(phases, batch=4))
    assert rates.at(41) == 41 / 80
    assert rates.at(91) == 41 / 80


def test_a_cap_counts_only_what_is_read_and_says_where_to_leave(make_config: Make, schedule_of: Make) -> None:
    def run(until: str, **caps: float) -> Schedule:
        config = make_config([(1000, {"a": 0.5, "b": 0.5}, {"until": until}), (10, {"b": 1})], caps=caps)
        schedule: Schedule = schedule_of(config, {"a": 401, "b": 40001})
        return schedule

    assert run("200 samples", a=1).counts_at(200)["a"] == 100
    with pytest.raises(PlanError) as caught:
        run("300 samples", a=1)
    (problem,) = caught.value.problems
    assert problem.what == (
        "source 'a' would be read 1.50 times by the point where phase 'p0' ends early, more than its max_epochs 1"
    )
    assert problem.fix == "end the phase earlier (until: 200 samples), or raise sources.a.max_epochs to 1.52"
    assert problem.where == "phases[0].blend.a"
    assert run("300 samples", a=1.52).counts_at(300)["a"] == 150


@given(st.integers(20, 400), st.integers(1, 9), st.integers(5, 60), st.data())
def test_doing_what_a_cap_s_refusal_says_mends_it(
    make_config: Make, schedule_of: Make, samples: int, weight: int, tokens: int, data: st.DataObject
) -> None:
    read = data.draw(st.integers(1, samples - 1))

    def run(until: int, cap: float) -> None:
        phases = [(samples, {"a": weight, "b": 5}, {"until": f"{until} samples"})]
        schedule_of(make_config(phases, caps={"a": cap}), {"a": tokens, "b": 10**6})

    try:
        run(read, 1)
    except PlanError as error:
        fix = error.problems[0].fix
        run(int(fix.split("until: ")[1].split(" ")[0]), 1)
        run(read, float(fix.rsplit(" ", 1)[1]))


def test_a_trunk_that_its_caps_forbid_may_be_left_early_again_and_again(make_config: Make, schedule_of: Make) -> None:
    blend = {"a": 0.5, "b": 0.5}
    first, second = (
        schedule_of(make_config([(1000, blend, {"until": f"{until} samples"})], caps={"a": 1}), {"a": 401, "b": 40001})
        for until in (100, 150)
    )
    assert [first.draw(k) for k in range(100)] == [second.draw(k) for k in range(100)]
    prove_past(second, first.fingerprints(), 100)

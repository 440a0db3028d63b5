from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.plan.phases import Draw, Schedule, SourceSize, build_schedule, windows
from megacode.plan.sources import SourceOrder

NAMES = ("code", "markup", "text", "web")
Make = Callable[..., Any]


@dataclass
class Case:
    phases: list[tuple[int, dict[str, float], dict[str, Any]]]
    tokens: dict[str, int]
    seq_length: int


@st.composite
def cases(draw: st.DrawFn, restarts: bool = False) -> Case:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    seq_length = draw(st.integers(2, 7))
    tokens = {name: draw(st.integers(seq_length + 1, 200)) for name in names}
    weight = st.sampled_from([0, 0.1, 0.25, 0.4, 1, 2])
    blend = st.fixed_dictionaries(dict.fromkeys(names, weight)).filter(lambda b: any(b.values()))
    repeat = st.sampled_from(["continue", "restart"] if restarts else ["continue"])
    rule = st.builds(lambda r: {"repeat": r}, st.one_of(repeat, st.fixed_dictionaries(dict.fromkeys(names, repeat))))
    phases = draw(st.lists(st.tuples(st.integers(1, 90), blend, rule), min_size=1, max_size=4))
    return Case(phases, tokens, seq_length)


def every_draw(schedule: Schedule) -> list[Draw]:
    return [schedule.draw(sample) for sample in range(schedule.total_samples)]


@given(case=cases(restarts=True))
def test_scalar_vector_and_prefix_forms_agree_with_walking(make_config: Make, schedule_of: Make, case: Case) -> None:
    schedule = schedule_of(make_config(case.phases, seq_length=case.seq_length), case.tokens)
    draws, counts = every_draw(schedule), Counter[str]()
    assert len(draws) == sum(samples for samples, *_ in case.phases) > 0
    assert len(schedule.phases) == len(case.phases)
    arrays = schedule.draws(np.arange(schedule.total_samples))
    for sample, draw in enumerate(draws):
        assert draw.sample == sample
        assert schedule.source_names[arrays.source_id[sample]] == draw.source
        assert (arrays.epoch[sample], arrays.window[sample]) == (draw.epoch, draw.window)
        assert arrays.first_token[sample] == draw.first_token
        assert schedule.counts_at(sample) == {name: counts[name] for name in schedule.source_names}
        assert schedule.phase_at(sample).name == draw.phase
        counts[draw.source] += 1
    for phase in schedule.phases:
        assert sum(phase.counts.values()) == phase.samples
        drawn = Counter(draw.source for draw in draws[phase.first_sample : phase.last_sample])
        assert drawn == Counter({name: count for name, count in phase.counts.items() if count})


@given(case=cases(restarts=True), data=st.data())
def test_draws_in_any_order_and_block_are_the_same(
    make_config: Make, schedule_of: Make, case: Case, data: st.DataObject
) -> None:
    schedule = schedule_of(make_config(case.phases, seq_length=case.seq_length), case.tokens)
    samples = np.array(data.draw(st.lists(st.integers(0, schedule.total_samples - 1), max_size=30)), dtype=np.int64)
    assert len(schedule.draws(samples).window) == len(samples)
    for block, whole in zip(schedule.draws(samples), schedule.draws(np.arange(schedule.total_samples)), strict=True):
        assert np.array_equal(block, whole[samples])
        assert block.dtype == whole.dtype


@given(case=cases())
def test_no_window_comes_twice_before_its_source_is_exhausted(make_config: Make, schedule_of: Make, case: Case) -> None:
    schedule = schedule_of(make_config(case.phases, seq_length=case.seq_length), case.tokens)
    draws = every_draw(schedule)
    assert len(draws) == sum(samples for samples, *_ in case.phases) > 0
    for name, tokens in case.tokens.items():
        stream = [(draw.epoch, draw.window) for draw in draws if draw.source == name]
        count = windows(tokens, case.seq_length)
        for epoch in range(len(stream) // count + 1):
            part = stream[epoch * count : (epoch + 1) * count]
            assert all(where == epoch for where, _ in part)
            assert len({window for _, window in part}) == len(part)


@given(case=cases())
def test_every_prefix_of_a_phase_is_within_two_samples_of_its_blend(
    make_config: Make, schedule_of: Make, case: Case
) -> None:
    schedule = schedule_of(make_config(case.phases, seq_length=case.seq_length), case.tokens)
    assert [phase.samples for phase in schedule.phases] == [samples for samples, *_ in case.phases] != []
    for phase in schedule.phases:
        before = schedule.counts_at(phase.first_sample)
        for done in range(1, phase.samples + 1):
            now = schedule.counts_at(phase.first_sample + done)
            for name, count in phase.counts.items():
                assert abs((now[name] - before[name]) - done * count / phase.samples) <= 2


@given(case=cases(restarts=True))
def test_a_source_that_restarts_reads_its_first_samples_again(make_config: Make, schedule_of: Make, case: Case) -> None:
    config = make_config(case.phases, seq_length=case.seq_length)
    schedule = schedule_of(config, case.tokens)
    positions = dict.fromkeys(case.tokens, 0)
    assert schedule.total_samples == sum(samples for samples, *_ in case.phases) > 0
    for phase, wanted in zip(schedule.phases, config.phases, strict=True):
        for name in phase.counts:
            positions[name] = 0 if wanted.restarts(name) else positions[name]
        for sample in range(phase.first_sample, phase.last_sample):
            draw = schedule.draw(sample)
            order = schedule.orders[draw.source]
            assert (draw.epoch, draw.position, draw.window, draw.first_token) == order.at(positions[draw.source])
            positions[draw.source] += 1


@given(case=cases(restarts=True), data=st.data())
def test_samples_of_finds_every_sample_that_reads_a_token(
    make_config: Make, schedule_of: Make, case: Case, data: st.DataObject
) -> None:
    schedule = schedule_of(make_config(case.phases, seq_length=case.seq_length), case.tokens)
    name = data.draw(st.sampled_from(sorted(case.tokens)))
    first = data.draw(st.integers(0, case.tokens[name] - 1))
    last = data.draw(st.integers(first, case.tokens[name] - 1))
    length = schedule.seq_length
    expected = [
        draw.sample
        for draw in every_draw(schedule)
        if draw.source == name and draw.first_token <= last and draw.first_token + length >= first
    ]
    assert schedule.samples_of(name, first, last) == expected


@given(case=cases(restarts=True), later=cases(), data=st.data())
@settings(max_examples=50)
def test_the_past_is_bit_equal_whatever_comes_later(
    make_config: Make, schedule_of: Make, case: Case, later: Case, data: st.DataObject
) -> None:
    length = case.seq_length
    kept = data.draw(st.integers(1, len(case.phases)))
    tokens = {name: max(count, length + 1) for name, count in (later.tokens | case.tokens).items()}
    phases = case.phases[:kept] + later.phases
    one = schedule_of(make_config(case.phases, seq_length=length), case.tokens)
    other = schedule_of(make_config(phases, seq_length=length, sources=["new", "zzz"]), tokens | {"new": 99})
    past = other.phases[kept - 1].last_sample
    assert every_draw(one)[:past] == every_draw(other)[:past]
    assert one.fingerprints()[:kept] == other.fingerprints()[:kept]


def test_the_order_knows_nothing_of_batches_rates_and_layouts(make_config: Make, schedule_of: Make) -> None:
    phases = [(60, {"a": 0.6, "b": 0.4}), (40, {"a": 0.2, "b": 0.8})]
    plain = schedule_of(make_config(phases), {"a": 90, "b": 70})
    rate = {"learning_rate": {"schedule": "linear", "peak": 1.0, "final": 0.1}, "name": "other"}
    other = make_config(
        [(60, phases[0][1], rate), phases[1]], batch=20, train={"micro_batch_size": 4}, parallel={"tensor": 2}
    )
    changed = schedule_of(other, {"a": 90, "b": 70})
    assert len(every_draw(plain)) == 100
    assert [draw[2:] for draw in every_draw(plain)] == [draw[2:] for draw in every_draw(changed)]


def test_another_seed_gives_another_order_of_windows_and_the_same_order_of_sources(
    make_config: Make, schedule_of: Make
) -> None:
    phases = [(300, {"a": 0.6, "b": 0.4})]
    one, other = (schedule_of(make_config(phases, seed=seed), {"a": 5000, "b": 5000}) for seed in (1, 2))
    assert [draw.source for draw in every_draw(one)] == [draw.source for draw in every_draw(other)]
    assert np.mean([a.window == b.window for a, b in zip(every_draw(one), every_draw(other), strict=True)]) < 0.05


def test_the_order_is_the_same_for_ever(make_config: Make, schedule_of: Make) -> None:
    schedule = schedule_of(make_config([(5000, {"a": 0.7, "b": 0.3})]), {"a": 4001, "b": 4003})
    assert [tuple(schedule.draw(sample)[2:]) for sample in (0, 1, 4996, 4999)] == [
        ("a", 0, 0, 574, 2296),
        ("b", 0, 0, 761, 3044),
        ("a", 3, 497, 501, 2004),
        ("a", 3, 499, 478, 1912),
    ]
    assert schedule.fingerprints()[0]["fingerprint"][:16] == "b393cdc33c3e09a1"


@given(st.integers(2, 60), st.integers(1, 20), st.integers())
def test_windows_lie_inside_the_source_and_each_epoch_cuts_it_elsewhere(extra: int, length: int, seed: int) -> None:
    tokens = length + extra
    order = SourceOrder(SourceSize("s", tokens), length, seed)
    assert order.windows == windows(tokens, length) == (tokens - 1) // length
    assert order.offset(0) == 0
    for epoch in range(4):
        offset = order.offset(epoch)
        assert 0 <= offset <= order.tail_tokens < length
        assert offset + order.windows * length <= tokens - 1
        assert order.tail_tokens == 0 or offset != order.offset(epoch + 1)
    assert sorted({order.offset(epoch) for epoch in range(order.tail_tokens + 1)}) == list(range(order.tail_tokens + 1))


@given(st.integers(3, 300), st.integers(1, 20), st.lists(st.integers(0, 5000), max_size=80))
def test_a_source_s_scalar_and_vector_forms_agree(extra: int, length: int, indices: list[int]) -> None:
    order = SourceOrder(SourceSize("s", length + extra), length, 7)
    places = order.many(np.array(indices, dtype=np.int64))
    assert len(places.epoch) == len(places.window) == len(places.first_token) == len(indices)
    for k, index in enumerate(indices):
        place = order.at(index)
        assert (places.epoch[k], places.window[k], places.first_token[k]) == (
            place.epoch,
            place.window,
            place.first_token,
        )


def test_a_source_shorter_than_a_window_is_refused(make_config: Make, schedule_of: Make) -> None:
    config = make_config([(10, {"a": 1, "tiny": 1, "unused": 0})], seq_length=8)
    with pytest.raises(DataError, match=r"sources.tiny: the source has 8 training tokens, less than .* = 9") as caught:
        schedule_of(config, {"a": 100, "tiny": 8, "unused": 1})
    assert "smaller train.seq_length" in str(caught.value)
    assert caught.value.exit_code == 2
    assert schedule_of(config, {"a": 100, "tiny": 9, "unused": 1}).orders["tiny"].windows == 1


def test_a_schedule_of_100m_samples_from_8_sources_is_built_in_no_time(make_config: Make) -> None:
    names = [f"s{k}" for k in range(8)]
    config = make_config([(10**8, {name: k + 1 for k, name in enumerate(names)})], seq_length=4096)
    sizes = {name: SourceSize(name, 10**11) for name in names}
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        build_schedule(config, sizes)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01

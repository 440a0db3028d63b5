from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.base.files import RunDir
from megacode.checkpoint.ledger import Ledger

FACTS = {"phase": "p0", "iteration": 3, "reason": "spike", "loss": 9.5, "grad_norm": 40.0}


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run").create()


def test_a_run_without_a_ledger_has_withheld_nothing(run):
    ledger = Ledger.read(run)
    assert ledger.entries == []
    assert ledger.withheld(0, 10**9) is None
    assert ledger.samples() == 0


def test_what_is_added_is_read_again(run):
    ledger = Ledger.read(run, writes=True)
    assert ledger.add(16, 24, **FACTS)
    assert ledger.add(40, 48, **(FACTS | {"reason": "non-finite", "loss": math.nan, "grad_norm": math.inf}))
    again = Ledger.read(run)
    assert again.entries == ledger.entries
    assert [entry.reason for entry in again.entries] == ["spike", "non-finite"]
    assert again.entries[1].loss is None
    assert again.entries[1].grad_norm is None
    keys = ["first_sample", "last_sample", "phase", "iteration", "reason", "loss", "grad_norm", "time"]
    assert [list(json.loads(line)) for line in run.ledger.read_text().splitlines()] == [keys, keys]


def test_any_overlap_withholds_and_the_last_sample_lies_outside(run):
    ledger = Ledger(run)
    ledger.add(16, 24, **FACTS)
    found = [ledger.withheld(first, first + 8) is not None for first in (0, 8, 9, 16, 23, 24)]
    assert found == [False, False, True, True, True, False]


def test_a_rank_that_does_not_write_knows_the_same_and_leaves_no_file(run):
    ledger = Ledger.read(run)
    assert ledger.add(0, 8, **FACTS)
    assert ledger.withheld(7, 8)
    assert not run.ledger.exists()


def test_a_range_that_is_there_already_is_not_written_twice(run):
    ledger = Ledger.read(run, writes=True)
    ledger.add(0, 8, **FACTS)
    ledger.add(8, 16, **FACTS)
    for first, last in ((0, 8), (2, 5), (4, 12), (0, 16)):
        assert not Ledger.read(run, writes=True).add(first, last, **FACTS)
    assert len(run.ledger.read_text().splitlines()) == 2


def test_samples_beside_an_entry_are_named_when_another_batch_size_withholds_them_too(run):
    ledger = Ledger.read(run, writes=True)
    ledger.add(16, 24, **FACTS)
    assert ledger.add(12, 24, **FACTS)
    assert ledger.ranges() == [(12, 24)]
    assert ledger.samples() == 12
    assert ledger.samples(20) == 8


@pytest.mark.parametrize("torn", ['{"first_sample": 8, "las', "\x00\x00\x00", "{"])
def test_a_torn_last_line_is_left_out_and_the_next_line_stands_whole(run, torn):
    Ledger.read(run, writes=True).add(0, 8, **FACTS)
    with run.ledger.open("a") as file:
        file.write(torn)
    ledger = Ledger.read(run, writes=True)
    assert ledger.ranges() == [(0, 8)]
    ledger.add(8, 16, **FACTS)
    assert [entry.first_sample for entry in Ledger.read(run).entries] == [0, 8]
    assert run.ledger.read_text().count("\n") == 2


@pytest.mark.parametrize(
    "line",
    [
        '{"first_sample": 8, "las',
        "[]",
        "5",
        json.dumps({"first_sample": 8, "last_sample": 8, "time": 0.0} | FACTS),
        json.dumps({"first_sample": 8, "last_sample": "9", "time": 0.0} | FACTS),
        json.dumps({"first_sample": 8, "last_sample": 16, "time": 0.0} | FACTS | {"reason": "mood"}),
        json.dumps({"first_sample": 8, "last_sample": 16} | FACTS),
        "",
    ],
)
def test_a_damaged_line_in_the_middle_is_an_error_that_says_what_to_do(run, line):
    ledger = Ledger.read(run, writes=True)
    ledger.add(0, 8, **FACTS)
    with run.ledger.open("a") as file:
        file.write(line + "\n")
    whole = Ledger(run, writes=True)
    whole.add(16, 24, **FACTS)
    with pytest.raises(DataError, match="line of the ledger is damaged") as caught:
        Ledger.read(run)
    assert caught.value.problems[0].where == f"{run.ledger}:2"
    assert "remove line 2" in caught.value.problems[0].fix


@given(
    ranges=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 12)), max_size=8),
    clock=st.integers(0, 60),
)
def test_planned_samples_are_learned_or_withheld_and_each_is_counted_once(make_config, schedule_of, ranges, clock):
    config = make_config([(30, {"a": 2, "b": 1}), (30, {"b": 1, "c": 3})])
    schedule = schedule_of(config, {"a": 200, "b": 200, "c": 200})
    ledger = Ledger(RunDir("nowhere"))
    for first, count in ranges:
        ledger.add(first, min(60, first + count), **FACTS)
    expected = dict.fromkeys("abc", 0)
    for sample in range(clock):
        if ledger.withheld(sample, sample + 1):
            expected[schedule.draw(sample).source] += 1
    assert ledger.samples_by_source(schedule, clock) == expected
    assert ledger.samples(clock) == sum(expected.values())
    learned = {name: schedule.counts_at(clock)[name] - count for name, count in expected.items()}
    assert all(count >= 0 for count in learned.values())

"""The numbers behind the charts."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.files import read_jsonl
from megacode.report.figure import plain, scientific
from megacode.report.mixture import mixture
from megacode.report.run_charts import loss
from megacode.report.run_record import read_run
from megacode.report.score_table import table
from megacode.report.scores import checkpoint_title, collect, source_of
from megacode.report.series import deviation, realised_shares, slots, smoothed_loss, source_tokens
from megacode.report.svg import Scale, domain, element, path


@pytest.fixture
def record(build_run, tmp_path):
    return read_run(build_run(tmp_path / "demo"))


@pytest.mark.parametrize("limit", [1, 7, 60, 1000])
def test_slots_hold_every_iteration_once_and_end_where_phases_end(record, limit):
    found = slots(record, limit)
    assert [line["iteration"] for slot in found for line in slot.lines] == list(range(1, 421))
    assert all(len({line["phase"] for line in slot.lines}) == 1 for slot in found)
    assert [slot.start for slot in found[1:]] == [slot.stop for slot in found[:-1]]


def test_shares_of_a_whole_run_are_those_of_the_plan(record):
    rows = {name: [p["sources"].get(name, {}) for p in record.phases] for name in record.sources}
    planned = [sum(row.get("samples", 0) for row in found) for found in rows.values()]
    counted = [0.0] * 3
    for slot in slots(record):
        shares = realised_shares(slot, record.sources)
        assert sum(shares) == pytest.approx(1)
        counted = [total + share * 16 * len(slot.lines) for total, share in zip(counted, shares, strict=True)]
    assert counted == pytest.approx(planned)


def test_the_smoothed_loss_has_no_line_where_a_source_is_not_read(record):
    grid = slots(record)
    values = smoothed_loss(record, grid, "markup")
    in_text = [value for slot, value in zip(grid, values, strict=True) if slot.last["phase"] == "text"]
    assert in_text
    assert all(map(math.isnan, in_text))
    assert math.isfinite(values[-1])


def test_no_line_jumps_where_a_phase_begins(record):
    rng = random.Random(0)
    lines = [
        {**line, "loss_by_source": {name: 4 * (1 + rng.gauss(0, 0.33 / math.sqrt(count)))
                                    for name, count in line["samples_by_source"].items()}}
        for line in record.train
    ]  # fmt: skip
    flat = replace(record, train=lines)  # one sample is off by a third, and nothing else happens
    grid = slots(flat)
    for source in ("text", "code", "markup"):
        kept = [value for value in smoothed_loss(flat, grid, source) if math.isfinite(value)]
        assert len(kept) > 20
        assert max(abs(value / 4 - 1) for value in kept) < 0.15  # 0.25 with a window that is cut at the border


def test_a_line_starts_once_it_has_its_samples(record):
    grid = slots(record)
    first = {}
    for source in ("text", "markup"):
        values = smoothed_loss(record, grid, source)
        first[source] = next(s.last["iteration"] for s, v in zip(grid, values, strict=True) if math.isfinite(v))
    assert 6 <= first["text"] <= 9  # eight samples an iteration, fifty on either side
    assert 29 <= first["markup"] <= 36  # one and a half


def test_a_line_goes_over_the_border_of_a_phase_that_reads_the_source_too(record):
    grid = slots(record)
    values = smoothed_loss(record, grid, "code")
    border = next(i for i, slot in enumerate(grid) if slot.last["phase"] == "text")
    around = values[border - 3 : border + 3]
    assert len(around) == 6
    assert all(map(math.isfinite, around))


def test_legends_show_the_whole_run_and_what_is_no_longer_read(build_run, tmp_path):
    record = read_run(build_run(tmp_path / "other", limit=300))
    counts = {"text": 0, "code": 0, "markup": 0}
    for line in record.train:
        for name, count in line["samples_by_source"].items():
            counts[name] += count
    total = sum(counts.values())
    legend = {entry.label: entry for entry in mixture(record, slots(record)).legend}
    for name, count in counts.items():
        assert legend[name].final == f"{100 * count / total:.1f} %"
    losses = {entry.label: entry for entry in loss(record, slots(record)).legend}
    assert (losses["markup"].past, losses["markup"].note) == (True, "last read at iteration 200")
    assert not losses["text"].past


def test_an_iteration_done_twice_counts_once_with_its_last_measurement(build_run, tmp_path):
    run = build_run(tmp_path / "demo", limit=20)
    again = {**read_jsonl(run / "metrics.jsonl")[10], "grad_norm": 9.5}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    record = read_run(run)
    assert len(record.train) == 20
    assert record.train[again["iteration"] - 1]["grad_norm"] == 9.5


def test_the_deviation_is_below_one_sample_here_and_unknown_where_iterations_are_missing(record, tmp_path):
    assert deviation(record) < 1
    run = record.path
    lines = read_jsonl(run / "metrics.jsonl")
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line["iteration"] != 7))
    assert math.isnan(deviation(read_run(run)))


def test_an_epoch_is_the_whole_windows_of_a_source(record):
    assert source_tokens(record, "code") == 1_499_999 // 512 * 512
    assert math.isnan(source_tokens(record, "unheard of"))


def test_checkpoints_are_called_after_the_phase_they_end(record):
    titles = [checkpoint_title(record, iteration) for iteration in (0, 200, 250, 380, 420)]
    assert titles == ["before training", "after balanced", "iteration 250", "after text", "after cooldown"]


def test_scores_are_collected_with_their_error_and_chance(record):
    found = {(s.iteration, s.task): s for s in collect(record)}
    assert found[420, "demo_next_word_code"].value == pytest.approx(0.4)
    assert found[420, "demo_endings_text"].stderr == 0.03
    assert found[420, "demo_endings_text"].chance == 0.25
    assert found[0, "demo_bits_code"].is_bits
    groups = table(record, collect(record))["groups"]
    assert [len(group["rows"]) for group in groups] == [3, 3, 3, 1]
    percent = "%, higher is better"
    notes = [group["note"] for group in groups]
    assert notes == ["lower is better", f"{percent}, chance 25 %", f"{percent}, chance 25 %", percent]
    assert groups[1]["rows"][0]["cells"][-1] == {"value": "45.0", "error": "± 5.9"}


def test_a_task_belongs_to_the_source_in_its_name():
    assert source_of("demo_endings_text", ["text", "code"]) == "text"
    assert source_of("bits-web-code", ["code", "web_code"]) == "web_code"
    assert source_of("context", ["text"]) == ""


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(1, 12))
def test_ticks_lie_on_their_axis_and_are_not_too_many(low, width, count):
    high = low + width
    if not high > low or (high - low) < 1e-9 * max(abs(low), abs(high)):
        return
    ticks = Scale(low, high, 0, 100).ticks(count)
    room = 1e-6 * (high - low)
    assert all(low - room <= tick <= high + room for tick in ticks)
    assert len(ticks) <= count + 1


@given(st.floats(1e-12, 1e12), st.floats(1.001, 1e18), st.integers(2, 12))
def test_logarithmic_ticks_lie_on_their_axis(low, ratio, count):
    high = low * ratio
    ticks = Scale(low, high, 0, 100, log=True).ticks(count)
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)
    assert len(ticks) <= count + 4


measured = st.floats(-1e30, 1e30, allow_subnormal=False) | st.sampled_from([math.nan, math.inf, -math.inf])


@given(st.lists(measured, max_size=8), st.booleans())
def test_an_axis_is_never_empty(values, log):
    low, high = domain(values, log=log)
    assert low < high
    assert low > 0 or not log


def test_points_without_a_value_break_a_line():
    assert path([(0, 0), (1, 1), (2, math.nan), (3, 3), (4, 4)]) == '<path d="M0 0L1 1M3 3L4 4"></path>'


def test_elements_escape_what_they_are_given():
    assert element("text", "<b>", x=1.25, text_anchor='a"b') == '<text x="1.2" text-anchor="a&#34;b">&lt;b&gt;</text>'


def test_small_numbers_are_short():
    assert [scientific(n) for n in (0, 1e-6, 3.25e-4)] == ["0", "1e-6", "3.25e-4"]
    assert [plain(n) for n in (0, 0.25, 25_000, 0.0001)] == ["0", "0.25", "25k", "1e-4"]

"""A mirror's curve is the run's valid history: nothing is lost or doubled, and what changes begins a new curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from megacode.metrics.mirrors.history import CurveHistory
from tests.metrics.mirrored import Line, append, begin, score, segment, train, valid, validation


def curve_of(history: CurveHistory) -> list[tuple[str, int, Any]]:
    return [(row.record["kind"], row.record["iteration"], row.record.get("loss")) for row in history.lines(0)]


def history_of(path: Path, *lines: Line) -> CurveHistory:
    run = begin(path)
    append(run, *lines)
    history = CurveHistory(run.metrics, 1700000000.0)
    history.read()
    return history


def test_lines_that_come_again_as_they_were_continue_the_curve(tmp_path: Path) -> None:
    first = [validation(0, 6.0), *(train(number, 6 - number / 10) for number in range(1, 8))]
    # The repeated losses differ in the fourth digit, as on GPUs; times differ always.
    again = [train(number, (6 - number / 10) * 1.0002, seconds=9.0, time=1800000000.0) for number in range(5, 10)]
    history = history_of(tmp_path, *first, segment(4), *again)
    assert history.curve == 1
    assert [(kind, iteration) for kind, iteration, _ in curve_of(history)] == [
        ("validation", 0), *(("train", number) for number in range(1, 10)),
    ]  # fmt: skip


def test_what_differs_begins_a_curve_with_all_lines_that_count(tmp_path: Path) -> None:
    first = [train(number, 5.0) for number in range(1, 8)]
    changes = ({"skipped": True}, {"samples_digest": 1}, {"learning_rate": 2.0}, {"loss": 5.2}, {"phase": "second"})
    for number, change in enumerate(changes):
        again = [train(5, 5.0), {**train(6, 5.0), **change}, train(7, 5.0)]
        history = history_of(tmp_path / str(number), *first, segment(4), *again)
        assert history.curve == 2, change
        losses = [5.0] * 5 + [change.get("loss", 5.0), 5.0]
        assert curve_of(history) == [("train", place, loss) for place, loss in enumerate(losses, 1)]


def test_a_long_repeat_that_leaves_out_a_line_begins_a_curve_where_it_does(tmp_path: Path) -> None:
    first = [train(number, 5.0) for number in range(1, 100)]
    again = [train(number, 5.0) for number in range(11, 120) if number != 60]
    history = history_of(tmp_path, *first, segment(50), train(51, 5.0), segment(10), *again)
    assert history.curve == 2
    assert [iteration for _, iteration, _ in curve_of(history)] == [*range(1, 60), *range(61, 120)]


def test_a_validation_that_does_not_come_again_is_no_part_of_the_history(tmp_path: Path) -> None:
    first = [train(1, 5.0), train(2, 5.0), validation(2, 5.0), train(3, 5.0)]
    history = history_of(tmp_path, *first, segment(1), train(2, 5.0), train(3, 5.0))
    assert (history.curve, len(history.rows)) == (2, 3)


def test_scores_of_a_model_count_once_and_new_ones_begin_a_curve(tmp_path: Path) -> None:
    lines = [train(1, 5.0), train(2, 5.0), score(1, 0.5), segment(0), train(1, 5.0), train(2, 5.0), train(3, 5.0)]
    same = history_of(tmp_path / "same", *lines, score(1, 0.5))
    assert (same.curve, len(same.rows)) == (1, 4)
    other = history_of(tmp_path / "other", *lines, score(1, 0.75))
    assert (other.curve, len(other.rows)) == (2, 4)


def test_damaged_and_incomplete_lines_are_left_out_and_times_are_of_their_lines(tmp_path: Path) -> None:
    history = history_of(tmp_path, validation(0, 6.0), train(1, 5.0))
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write(
            "not JSON\n[1]\n" + json.dumps(train(2, 5.0, consumed_samples=None)) + "\n" + json.dumps(train(2, 5.0))
        )
    history.read()
    assert [row.time for row in history.lines(0)] == [1700000000.0, 1700000001.0]
    with path.open("a") as file:
        file.write("\n")
    history.read()
    assert [row.record["iteration"] for row in history.lines(0)] == [0, 1, 2]
    assert [row.end for row in history.lines(2)] == [path.stat().st_size]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.lists(st.sampled_from([5.0, 5.0, 5.0, 6.0]), max_size=6)), max_size=5),
    st.lists(st.integers(1, 12), max_size=8),
)
def test_a_curve_that_is_read_in_any_pieces_holds_the_valid_lines_once(
    tmp_path_factory: Any, starts: list[tuple[int, list[float]]], pieces: list[int]
) -> None:
    """Runs that go back, again and again, and train other losses or the same; a start that is read piece by piece."""
    lines: list[Line] = [train(number, 5.0) for number in range(1, 6)]
    reached = 5
    for back, losses in starts:
        back = min(back, reached)
        lines += [segment(back), *(train(back + place, loss) for place, loss in enumerate(losses, 1))]
        reached = back + len(losses)
    lines += [segment(reached), train(reached + 1, 7.0), *(train(reached + place, 7.0) for place in range(2, 9))]
    path = tmp_path_factory.mktemp("run")
    run, whole = begin(path), history_of(path, *lines)
    text, gradual = run.metrics.read_bytes(), CurveHistory(run.metrics, 1700000000.0)
    run.metrics.write_bytes(b"")
    for piece in [*pieces, len(text)]:
        with run.metrics.open("ab") as file:
            file.write(text[file.tell() : file.tell() + 40 * piece])
        gradual.read()
    expected = [(kind, iteration, line["loss"]) for (kind, iteration), line in valid(run).items()]
    assert curve_of(whole) == curve_of(gradual) == expected
    assert whole.curve == gradual.curve

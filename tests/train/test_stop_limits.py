from __future__ import annotations

import time
from pathlib import Path

import pytest

from megacode.base.files import RunDir
from megacode.train.stop_limits import TimeLimit, TouchFiles, process_start


class Now:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run").create()


def test_without_a_limit_nothing_is_ever_due(now: Now) -> None:
    limit = TimeLimit(None, now(), now)
    limit.stepped(1e9)
    now.seconds += 1e12
    assert not limit.due()


def test_a_start_stops_while_an_iteration_and_a_save_still_fit_half_as_long_again(now: Now) -> None:
    limit = TimeLimit(600.0, now(), now)
    for seconds in (10.0, 12.0, 11.0):
        limit.stepped(seconds)
    for seconds in (30.0, 38.0, 20.0):
        limit.saved(seconds)
    now.seconds = 1000.0 + 600.0 - 1.5 * 50.0
    assert not limit.due()
    now.seconds += 0.1
    assert limit.due()


def test_a_validation_that_comes_next_must_fit_too(now: Now) -> None:
    limit = TimeLimit(600.0, now(), now)
    limit.stepped(10.0)
    limit.saved(30.0)
    limit.measured("validation", 100.0)
    now.seconds = 1000.0 + 600.0 - 1.5 * 100.0
    assert not limit.due()
    assert limit.due(["validation"])


def test_a_validation_and_a_comparison_of_gradients_after_one_iteration_must_both_fit(now: Now) -> None:
    limit = TimeLimit(600.0, now(), now)
    limit.saved(0.0)
    limit.measured("validation", 100.0)
    limit.measured("alignment", 60.0)
    now.seconds = 1000.0 + 600.0 - 1.5 * 120.0
    assert not limit.due(["validation"])
    assert not limit.due(["alignment"])
    assert limit.due(["validation", "alignment"])


def test_a_first_iteration_that_took_long_is_forgotten_in_time(now: Now) -> None:
    limit = TimeLimit(600.0, now(), now)
    limit.saved(1.0)
    limit.stepped(400.0)
    assert limit.due()
    for _ in range(32):
        limit.stepped(1.0)
    assert not limit.due()


def test_before_the_first_save_one_is_taken_to_need_a_fiftieth_of_the_limit(now: Now) -> None:
    limit = TimeLimit(1000.0, now(), now)
    now.seconds = 1000.0 + 1000.0 - 1.5 * 20.0
    assert not limit.due()
    now.seconds += 0.1
    assert limit.due()
    limit.saved(1.0)
    assert not limit.due()


def test_time_counts_from_the_start_of_the_process() -> None:
    elapsed = time.time() - process_start()
    assert 0 < elapsed < 36_000
    assert TimeLimit(elapsed + 60.0).left == pytest.approx(60.0, abs=5.0)


def test_touch_files_are_obeyed_once(run: RunDir, now: Now) -> None:
    files = TouchFiles(run, now)
    assert files.touched() is None
    for path, expected in ((run.save_request, "save"), (run.stop_request, "stop")):
        path.touch()
        now.seconds += 1
        assert files.touched() == expected
        assert not path.exists()
        now.seconds += 1
        assert files.touched() is None


def test_a_stop_answers_a_save_too(run: RunDir, now: Now) -> None:
    run.save_request.touch()
    run.stop_request.touch()
    assert TouchFiles(run, now).touched() == "stop"
    assert list(run.path.iterdir()) == []


def test_looks_are_half_a_second_apart(run: RunDir, now: Now) -> None:
    files = TouchFiles(run, now)
    assert files.touched() is None
    run.save_request.touch()
    now.seconds += 0.49
    assert files.touched() is None
    now.seconds += 0.02
    assert files.touched() == "save"


def test_what_was_left_for_an_earlier_start_does_not_stop_this_one(
    run: RunDir, now: Now, caplog: pytest.LogCaptureFixture
) -> None:
    run.stop_request.touch()
    run.save_request.touch()
    files = TouchFiles(run, now)
    with caplog.at_level("INFO", logger="megacode"):
        files.clear()
    assert files.touched() is None
    assert caplog.text.count("was meant for an earlier start") == 2

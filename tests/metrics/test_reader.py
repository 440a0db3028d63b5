"""What counts of a metrics.jsonl that only grows, and what a start reads of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megacode.base.errors import DataError
from megacode.metrics import reader
from megacode.metrics.reader import Past, lines_backwards, lost_work, read_metrics, read_past
from megacode.metrics.sinks import JsonlSink

Json = dict[str, Any]


def train(iteration: int, **facts: Any) -> Json:
    return {"kind": "train", "iteration": iteration, "seconds": 0.5, **facts}


def write(path: Path, *lines: Json | bytes | int) -> Path:
    """Write lines; a number is a start that goes on from that iteration."""
    for line in lines:
        if isinstance(line, int):
            JsonlSink(path, line).close()
            continue
        with path.open("ab") as file:
            file.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    return path


def counted(path: Path, **arguments: Any) -> list[int]:
    return [line["iteration"] for line in read_metrics(path, "train", **arguments)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_what_a_run_went_back_over_does_not_count(path: Path) -> None:
    past = [train(number, run="old") for number in range(1, 11)]
    write(path, *past, 5, *(train(number, run="new") for number in range(6, 9)), 7, 7, train(8, run="newest"))
    rows = [(line["iteration"], line["run"]) for line in read_metrics(path)]
    assert rows == [*((number, "old") for number in range(1, 6)), (6, "new"), (7, "new"), (8, "newest")]
    write(path, 2)
    assert counted(path) == [1, 2]
    write(path, 4)
    assert counted(path) == [1, 2], "what was superseded once stays so"


def test_of_two_lines_of_an_iteration_the_last_counts_and_a_reader_may_ask_for_them(path: Path) -> None:
    write(path, train(1), train(2, loss=1.0), train(2, loss=2.0), 1, train(2, loss=3.0))
    repeated: list[int] = []
    assert [line.get("loss") for line in read_metrics(path, "train", repeated=repeated)] == [None, 3.0]
    assert repeated == [2], "once by two writers; once because the run went back"


def test_kinds_are_told_apart_and_scores_by_suite(path: Path) -> None:
    scores = [{"kind": "score", "iteration": 1, "suite": name, "at": place} for place, name in enumerate("aba")]
    write(path, train(1), {"kind": "validation", "iteration": 1}, *scores)
    assert [line["kind"] for line in read_metrics(path)] == ["train", "validation", "score", "score"]
    assert [(line["suite"], line["at"]) for line in read_metrics(path, "score")] == [("b", 1), ("a", 2)]


def test_lines_of_another_writer_are_read_as_well(path: Path) -> None:
    write(path, b'{"iteration":1,"kind":"train"}\n{"kind":"train","iteration":2}\r\n', train(3))
    assert counted(path) == [1, 2, 3]


def test_an_old_file_with_nan_is_read(path: Path) -> None:
    write(path, b'{"kind": "train", "iteration": 1, "loss": NaN, "seconds": 0.5}\n')
    assert [line["loss"] for line in read_metrics(path)] == [None]
    assert lost_work(path, 0) == (1, 0.5)


@pytest.mark.parametrize("bad", [b'{"kind": "train", "iter{"kind": "train", "iteration": 2}', b"\xff", b"[]", b"{}"])
def test_a_damaged_line_is_named_and_the_others_count(path: Path, bad: bytes) -> None:
    write(path, train(1), bad + b"\n", train(3), b'{"kind": "tr')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: the line is damaged"):
        list(read_metrics(path))
    damaged: list[str] = []
    assert counted(path, damaged=damaged) == [1, 3]
    assert [text.partition(": ")[0] for text in damaged] == ["metrics.jsonl:2"]
    assert lost_work(path, 0) == (2, 1.0)


def test_a_line_that_is_damaged_behind_its_beginning_is_named(path: Path) -> None:
    write(path, train(1), b'{"kind": "train", "iteration": 2, "loss": {"kind": 1}\n')
    damaged: list[str] = []
    assert counted(path, damaged=damaged) == [1]
    assert len(damaged) == 1


def test_an_empty_file_and_none_hold_nothing(path: Path) -> None:
    assert (counted(path), lost_work(path, 0), read_past(path)) == ([], (0, 0.0), Past())
    path.write_bytes(b"")
    assert (counted(path), lost_work(path, 0), read_past(path)) == ([], (0, 0.0), Past())
    JsonlSink(path, 0).close()
    assert path.read_bytes() == b"", "there is nothing to supersede"


@pytest.mark.parametrize("block", [1, 2, 5, 16, 1 << 18])
def test_lines_come_backwards_whatever_the_block(path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_BLOCK", block)
    for content, lines in (
        (b"", []), (b"torn", []), (b"\n", []), (b"ab\ncd\n", [b"cd", b"ab"]), (b"ab\n\ncd\nto", [b"cd", b"ab"]),
    ):  # fmt: skip
        path.write_bytes(content)
        assert list(lines_backwards(path)) == lines


def test_lost_work_is_what_lies_behind_and_still_counts(path: Path) -> None:
    write(path, *(train(number) for number in range(1, 11)))
    assert lost_work(path, 8) == (2, 1.0)
    assert lost_work(path, 10) == (0, 0.0)
    write(path, 5, train(6), train(7))
    assert lost_work(path, 7) == (0, 0.0)
    assert lost_work(path, 6) == (1, 0.5)
    assert lost_work(path, 3) == (4, 2.0), "8 to 10 were lost before, and not again"
    write(path, 7)
    assert lost_work(path, 3) == (4, 2.0)


def test_a_start_reads_no_further_than_what_is_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, *(train(number) for number in range(1, 2001)))
    parsed: list[bytes] = []
    whole = reader.parse_line

    def noted(line: bytes) -> Json:
        parsed.append(line)
        return whole(line)

    monkeypatch.setattr(reader, "parse_line", noted)
    assert lost_work(path, 1990) == (10, 5.0)
    JsonlSink(path, 1990).close()
    assert len(parsed) == 10


def test_a_segment_remembers_scores_and_where_the_run_went_back_to(path: Path) -> None:
    scores = [{"kind": "score", "iteration": number, "suite": "demo"} for number in (2, 6)]
    write(path, train(1), *scores, 9, 5, 7)
    past = read_past(path)
    assert list(past.scores) == ["demo@2"]
    assert [back for back, _ in past.segments] == [5, 7], "5 makes 9 void"
    assert past.left(6, 0.0)
    assert not past.left(5, 0.0)
    assert not past.left(6, past.segments[0][1] + 1)
    assert past.left(8, past.segments[0][1] - 1)

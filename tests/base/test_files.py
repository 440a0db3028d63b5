"""Files are written whole or not at all."""

from __future__ import annotations

import math
from pathlib import Path

import orjson
import pytest

from megacode.base.errors import ConfigError, DataError, PlanError, Problem
from megacode.base.files import RunDir, atomic_path, digest, publish, read_jsonl, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_remains(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert target.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_a_directory_replaces_the_one_before_it(tmp_path: Path) -> None:
    for text in ("first", "second"):
        hidden = tmp_path / ".hidden"
        hidden.mkdir()
        (hidden / "file").write_text(text)
        publish(hidden, tmp_path / "shown")
    assert (tmp_path / "shown" / "file").read_text() == "second"
    assert [item.name for item in tmp_path.iterdir()] == ["shown"]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    assert read_jsonl(tmp_path / "none") == []


def test_a_damaged_line_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for line in (b'{"a": 1{"a": 2}', b"\xff\xfe", b"[1]", b"\0\0\0", b'{"a": "\xe9"}'):
        path.write_bytes(b'{"a": 1}\r\n\n' + line + b'\n{"a": 3}\n{"a"')
        with pytest.raises(DataError, match=r"m\.jsonl:3: the line is damaged"):
            read_jsonl(path)
        damaged: list[str] = []
        assert read_jsonl(path, damaged) == [{"a": 1}, {"a": 3}]
        assert [text.partition(": ")[0] for text in damaged] == ["m.jsonl:3"]


def test_what_strict_json_cannot_hold_is_null_and_read_as_that(tmp_path: Path) -> None:
    document = {"a": math.nan, "b": [math.inf, 1.5, (-math.inf, "é")], "\udcff": "x\udcff", "c": {"d": True, "e": 3}}
    write_json(tmp_path / "x.json", document)
    found = orjson.loads((tmp_path / "x.json").read_bytes())
    assert found == {"a": None, "b": [None, 1.5, [None, "é"]], "?": "x?", "c": {"d": True, "e": 3}}
    old = tmp_path / "old.jsonl"
    old.write_text('{"a": NaN, "b": {"c": -Infinity}, "d": 1}\n')
    assert read_jsonl(old) == [{"a": None, "b": {"c": None}, "d": 1}]


def test_digests_tell_how_parts_are_divided() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab", "c") == digest(b"ab", b"c")


def test_a_run_directory_knows_its_checkpoints(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run").create()
    for iteration in (20, 3):
        run.checkpoint(iteration).mkdir(parents=True)
    (run.checkpoints / ".iter_0000030.saving").mkdir()
    assert run.iterations() == [3, 20]
    assert run.score("demo", 3).name == "demo@iter_0000003.json"


def test_errors_say_what_where_and_how_to_mend(tmp_path: Path) -> None:
    error = ConfigError("12 is odd", "a.yaml: x", "use 12 or 14")
    assert str(error) == "Config error: a.yaml: x: 12 is odd\n    use 12 or 14"
    assert (error.exit_code, PlanError("no").exit_code) == (2, 3)
    both = ConfigError(problems=[Problem("one"), Problem("two", "here")])
    assert str(both) == "Config error: 2 problems\n  one\n  here: two"
    write_json(tmp_path / "x.json", {"é": 1})
    assert (tmp_path / "x.json").read_text() == '{\n  "é": 1\n}\n'

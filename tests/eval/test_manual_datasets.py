"""Data sets that users copy to their place: a file that is not what it should be is named, whatever its parser says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacode.base.errors import DataError
from megacode.eval import manual_datasets
from megacode.eval.manual_datasets import read_quac, read_storycloze


@pytest.fixture
def quac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manual_datasets, "_quac_file", lambda: tmp_path / "quac.json")
    return tmp_path / "quac.json"


@pytest.mark.parametrize(
    "document",
    [
        b"", b"\xff\xfe", b"[1, 2]", b'{"data": [1]}', b'{"data": [{"paragraphs": [{"context": 5}]}]}',
        json.dumps({"data": [{"paragraphs": [{"context": "x", "qas": 7}], "title": "t"}]}).encode(),
    ],
)  # fmt: skip
def test_a_file_that_is_not_quacs_is_named(quac: Path, document: bytes) -> None:
    quac.write_bytes(document)
    with pytest.raises(DataError, match=f"{quac}: this is not QuAC's file \\("):
        read_quac()


def test_a_file_that_cannot_be_read_is_not_said_to_lack(quac: Path) -> None:
    quac.mkdir()
    with pytest.raises(DataError, match=f"{quac}: it cannot be read: Is a directory\n.*permissions"):
        read_quac()


@pytest.mark.parametrize(
    "content",
    [b"a,b\n1,2\n", b"AnswerRightEnding\n\x00\n", b"AnswerRightEnding\n9\n", b"AnswerRightEnding\n\xff\n"],
)
def test_a_file_that_is_not_story_clozes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    path = tmp_path / "megacode" / "story_cloze" / "cloze_test_test__spring2016.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: this is not the expected file"):
        read_storycloze()

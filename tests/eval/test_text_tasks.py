from __future__ import annotations

import http.server
import threading
from functools import partial

import pytest

from megacode.base.errors import DataError
from megacode.eval import manual_datasets
from megacode.eval.manual_datasets import fetch_quac, read_quac, read_storycloze
from megacode.eval.task_loading import network_problem
from megacode.eval.text_tasks import read_texts


def test_a_txt_is_one_document_and_a_jsonl_one_a_line(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two", "id": 7}\n')
    assert read_texts(tmp_path / "a.txt") == [{"text": "one\ntwo\n", "line": 1}]
    assert read_texts(tmp_path / "b.jsonl") == [{"text": "one", "line": 1}, {"text": "two", "line": 3}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "it contains no text"),
        ("a.txt", b"\xff", "it cannot be read"),
        ("a.jsonl", b'{"text": "x"}\n{"texts": 1}\n', "a.jsonl:2: the record has no key 'text'; its keys are 'texts'"),
        ("a.jsonl", b'{"text": 1}\n', "a.jsonl:1: the key 'text' holds 1, not a string"),
        ("a.jsonl", b'{"text": "x\\ud800"}\n', "a.jsonl:1: .* an unpaired surrogate"),
        ("a.jsonl", b"{torn\n", "a.jsonl:1: the line is not JSON"),
    ],
)
def test_a_text_file_that_is_wrong_says_where(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / name)


def test_windows_line_ends_are_bytes_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One line.\r\nAnother line.\r\n")
    (item,) = read_texts(tmp_path / "a.txt")
    assert len(item["text"].encode()) == 26


def test_data_files_of_another_shape_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    quac = tmp_path / "megacode/quac/val_v0.2.json"
    story = tmp_path / "megacode/story_cloze/cloze_test_test__spring2016.csv"
    for path, content in ((quac, '{"data": [{"title": "x"}]}'), (story, "InputStoryid,AnswerRightEnding\na,3\n")):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    with pytest.raises(DataError, match=r"this is not QuAC's file \(KeyError"):
        read_quac()
    with pytest.raises(DataError, match=r"this is not the expected file \(ValueError: AnswerRightEnding 3\)"):
        read_storycloze()


def test_quacs_file_is_downloaded_once_and_whole(to_code, tmp_path, monkeypatch):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=to_code / "cache/megacode/quac")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(manual_datasets, "QUAC_URL", f"{address}/gone.json")
        assert network_problem() == ""
        with pytest.raises(OSError, match="404"):
            fetch_quac()
        assert not list(tmp_path.rglob("*.json"))
        monkeypatch.setattr(manual_datasets, "QUAC_URL", f"{address}/val_v0.2.json")
        fetch_quac()
        server.shutdown()
    fetch_quac()  # the server is gone, the file is not asked for again
    assert len(read_quac()) == 3
    assert network_problem() == f"{address} cannot be reached from here: <urlopen error [Errno 111] Connection refused>"

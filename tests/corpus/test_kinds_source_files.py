from __future__ import annotations

import pytest

from megacode.base.errors import ConfigError
from megacode.corpus.document import Control, Counts
from megacode.corpus.kinds import KINDS, make_kind
from tests.corpus.records import documents_of


def test_source_files_are_chosen_by_language_and_name_it() -> None:
    rows = [
        {"id": "1", "text": "x", "path": "a/b.PY", "stars": 3},
        {"text": "all:\n", "path": "lib/Makefile"},
        {"text": "x", "path": "a.exe"},
        {"text": "x"},
        {"path": "a.py", "text": 5},
    ]
    documents, dropped = documents_of("code", *rows)
    assert [(d.id, d.fields["language"]) for d in documents] == [("1", "python"), ("in.jsonl:2", "makefile")]
    assert documents[0].fields["stars"] == 3
    assert documents[0].parts is None
    assert dropped == {"other language": 1, "no path": 1, "no text": 1}


def test_languages_can_be_left_out_and_added() -> None:
    rows = [{"text": "x", "path": name} for name in ("a.py", "a.rs", "a.zig")]
    documents, dropped = documents_of("code", *rows, languages=["rust"], more_languages={"zig": [".zig"]})
    assert [d.fields["language"] for d in documents] == ["rust", "zig"]
    assert dropped == {"other language": 1}


def test_markup_has_languages_of_its_own() -> None:
    rows = [{"text": "x", "path": name} for name in ("README.md", "a.html", "a.py")]
    documents, _ = documents_of("markup", *rows)
    assert [d.fields["language"] for d in documents] == ["markdown", "html"]


def test_keys_may_be_nested_and_named_otherwise() -> None:
    row = {"content": "x", "meta": {"path": "a.py", "hash": 7}}
    documents, _ = documents_of("code", row, text="content", path="meta.path", id="meta.hash")
    assert (documents[0].id, documents[0].text, documents[0].fields["path"]) == ("7", "x", "a.py")


def test_metadata_are_control_tokens_in_front_and_their_names_in_a_text_stay_text() -> None:
    row = {"id": "1", "text": "print('<filename>')\n", "path": "a.py", "repository": "me/it", "stars": 11}
    documents, _ = documents_of("code", row, metadata=1.0)
    assert documents[0].parts == (
        Control("<reponame>"), "me/it", Control("<filename>"), "a.py", Control("<gh_stars>"), "10-100",
        "\nprint('<filename>')\n",
    )  # fmt: skip
    rows = [{**row, "id": str(number)} for number in range(400)]
    drawn, _ = documents_of("code", *rows, metadata=0.2)
    shares = [sum(Control(token) in (d.parts or ()) for d in drawn) / 400 for token in ("<reponame>", "<gh_stars>")]
    assert all(0.12 < share < 0.28 for share in shares), shares
    again, _ = documents_of("code", *rows[::-1], metadata=0.2)
    assert [d.parts for d in again[::-1]] == [d.parts for d in drawn], "a draw depends on the document only"


def test_text_takes_what_has_a_text_and_leaves_out_parts_of_a_mixed_data_set() -> None:
    rows = [{"text": "a", "meta": {"set": "C4"}}, {"text": "b", "meta": {"set": "Github"}}, {"no": 1}]
    documents, dropped = documents_of("text", *rows, leave_out={"meta.set": ["Github"]})
    assert [d.text for d in documents] == ["a"]
    assert dropped == {"left out by a field": 1, "no text": 1}


def test_mistakes_in_the_settings_are_input_errors() -> None:
    with pytest.raises(ConfigError, match=r"code has no language 'pyhton'\n.*did you mean"):
        documents_of("code", languages=["pyhton"])
    with pytest.raises(ConfigError, match=r"settings.texts: texts is not a setting"):
        make_kind("text", {"texts": "x"}, Counts())
    with pytest.raises(ConfigError, match="there is no kind 'cod' of records"):
        make_kind("cod", {}, Counts())
    assert len(KINDS) == 7

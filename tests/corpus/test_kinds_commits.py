from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.corpus.document import Control
from tests.corpus.records import documents_of

OLD = "".join(f"line {n}\n" for n in range(100))
NEW = OLD.replace("line 50\nline 51\nline 52\n", "other\n")
COMMIT = {
    "commit": "c1", "old_contents": OLD, "new_contents": NEW, "subject": "Replace three lines of the file by one",
    "new_file": "a.py",
}  # fmt: skip


def test_a_commit_is_before_message_after_with_control_tokens() -> None:
    documents, dropped = documents_of("commits", COMMIT, whole_files=1.0)
    assert not dropped
    assert documents[0].parts == (
        Control("<commit_before>"), OLD, Control("<commit_msg>"), COMMIT["subject"], Control("<commit_after>"), NEW
    )  # fmt: skip
    assert documents[0].text == OLD + COMMIT["subject"] + NEW
    assert (documents[0].id, documents[0].fields) == (
        "c1",
        {"path": "a.py", "subject": COMMIT["subject"], "new_file": "a.py"},
    )


def test_a_part_shows_the_change_with_equal_context_on_both_files() -> None:
    documents, _ = documents_of("commits", COMMIT, whole_files=0.0, most_context=3)
    old, new = documents[0].parts[1], documents[0].parts[5]
    assert "line 50\nline 51\nline 52\n" in old
    assert "other\n" in new
    assert old.replace("line 50\nline 51\nline 52\n", "other\n") == new
    assert 3 <= old.count("\n") <= 9


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"old_contents": "x" * 100_000}, "long"),
        ({"new_contents": " \n"}, "empty new file"),
        ({"new_contents": OLD}, "no change"),
        ({"subject": " "}, "empty subject"),
        ({"subject": "Update README.md"}, "subject says nothing"),
        ({"subject": "Auto commit by the bot of today"}, "subject says nothing"),
        ({"subject": "v1.2.3"}, "subject says nothing"),
        ({"subject": "<?xml version is what it says here"}, "subject says nothing"),
        ({"subject": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, "subject says nothing"),
        ({"subject": None}, "no text"),
        ({"new_contents": OLD + "one\n"}, "drawn out: short change"),
        ({"new_contents": "x\n" * 300}, "drawn out: long change"),
        ({"subject": "Fix bug"}, "drawn out: terse subject"),
        ({"new_file": "a.json"}, "drawn out: data format"),
    ],
)
def test_a_commit_is_dropped_for_its_reason(changed: dict[str, object], reason: str) -> None:
    settings = {"keep_extreme": 0.0, "keep_terse": 0.0, "keep_data": 0.0}
    documents, dropped = documents_of("commits", {**COMMIT, **changed}, **settings)
    assert (documents, dropped) == ([], {reason: 1})


def test_a_tenth_of_the_extreme_changes_is_kept_by_a_hash_of_the_commit() -> None:
    rows = [{**COMMIT, "commit": f"c{n}", "new_contents": OLD + "one\n"} for n in range(500)]
    kept, _ = documents_of("commits", *rows)
    assert 25 < len(kept) < 80
    again, _ = documents_of("commits", *rows[::-1])
    assert [d.id for d in again[::-1]] == [d.id for d in kept]


LINES = st.lists(st.sampled_from(["a\n", "b\n", "\n", "c"]), max_size=12).map("".join)


@given(LINES, LINES)
def test_what_is_shown_of_any_change_holds_all_of_it(old: str, new: str) -> None:
    documents, dropped = documents_of(
        "commits",
        {**COMMIT, "old_contents": old, "new_contents": new},
        whole_files=0.0,
        most_context=0,
        keep_extreme=1.0,
    )
    if dropped:
        assert set(dropped) <= {"empty new file", "no change"}
        return
    shown_old, shown_new = documents[0].parts[1], documents[0].parts[5]
    head = old.index(shown_old) if shown_old else None
    assert shown_old in old
    assert shown_new in new
    assert len(old) - len(shown_old) == len(new) - len(shown_new), (head, "what is hidden is equal in both files")

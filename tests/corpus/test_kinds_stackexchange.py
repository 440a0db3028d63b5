from __future__ import annotations

import html
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError
from megacode.corpus.document import Control, Counts, Document
from megacode.corpus.html_text import post_texts
from megacode.corpus.kinds import make_file_kind
from megacode.corpus.kinds import stackexchange as module
from megacode.corpus.kinds.stackexchange import tags_of


def post(number: int, **attributes: object) -> str:
    values = {"Id": number, "Score": 0, "Body": f"<p>post {number}</p>", **attributes}
    return "  <row " + " ".join(f'{key}="{html.escape(str(value))}"' for key, value in values.items()) + " />\n"


def question(number: int, **attributes: object) -> str:
    return post(number, PostTypeId=1, Title=f"Title {number}", Tags="<a><c++>", **attributes)


def answer(number: int, parent: int, **attributes: object) -> str:
    return post(number, PostTypeId=2, ParentId=parent, **attributes)


def dump(directory: Path, *rows: str, head: str = '<?xml version="1.0" encoding="utf-8"?>\n') -> Path:
    site = directory / "site.example"
    site.mkdir(exist_ok=True)
    path = site / "Posts.xml"
    path.write_text(head + "<posts>\n" + "".join(rows) + "</posts>\n", encoding="utf-8-sig")
    return path


def read(path: Path, **settings: object) -> tuple[list[Document], dict[str, int]]:
    counts, scratch = Counts(), path.parent.parent / "scratch"
    documents = list(make_file_kind("stackexchange", settings, counts, scratch)(path))
    assert not list(scratch.iterdir()), "scratch files are removed"
    return documents, {reason: entry.documents for reason, entry in counts.reasons.items()}


def test_a_question_comes_with_its_accepted_and_best_answers(tmp_path: Path) -> None:
    path = dump(
        tmp_path,
        question(1, AcceptedAnswerId=5, OwnerUserId=9, ContentLicense="CC BY-SA 4.0", CreationDate="2020-01-01"),
        answer(2, 1, Score=3, OwnerUserId=8),
        answer(3, 1, Score=2),
        answer(4, 1, Score=50),
        answer(5, 1, Score=-1),
        answer(6, 1, Score=40),
    )
    documents, dropped = read(path)
    assert documents[0].text == "Q:\n\nTitle 1\n\npost 1\n\nA:\n\npost 5\n\nA:\n\npost 4\n\nA:\n\npost 6\n"
    assert documents[0].id == "site.example/1"
    assert documents[0].fields == {
        "site": "site.example", "title": "Title 1", "tags": ["a", "c++"], "score": 0, "license": "CC BY-SA 4.0",
        "date": "2020-01-01", "posts": ["1", "5", "4", "6"], "users": ["9", None, None, None],
    }  # fmt: skip
    assert dropped == {"answers beyond the most": 1, "answer with few votes": 1}


def test_answers_before_their_question_are_found_in_any_order_of_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_RANGE", 7)
    monkeypatch.setattr(module, "_BUFFER_BYTES", 500)
    rows = [question(number, AcceptedAnswerId=number + 1000) for number in range(1, 60)]
    rows += [answer(number + 1000, number) for number in range(1, 60)]
    expected, _ = read(dump(tmp_path, *rows))
    random.Random(1).shuffle(rows)
    assert len(expected) == 59
    assert read(dump(tmp_path, *rows))[0] == expected


def test_what_is_not_kept_is_counted(tmp_path: Path) -> None:
    path = dump(
        tmp_path,
        question(1),
        answer(2, 1, Score=1),
        answer(3, 99, Score=9),
        post(4, PostTypeId=5),
        post(5, PostTypeId=2),
        question(6, Score=-5),
        '  <row Id="7" PostTypeId="1" />\n',
        post(8, PostTypeId=2, ParentId="9" * 5_000),
    )
    assert read(path, min_question_score=0) == (
        [],
        {
            "neither question nor answer": 1, "attributes missing": 3, "answer with few votes": 1,
            "question with few kept answers": 1, "question with few votes": 1, "answer without its question": 1,
        },
    )  # fmt: skip


POSTS = st.lists(
    st.tuples(st.sampled_from(["1", "2", "5"]), st.integers(1, 6), st.integers(1, 6), st.integers(-2, 6)), max_size=24
)


@given(POSTS, st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, 0, 3]))
def test_every_post_is_in_a_document_or_counted(
    tmp_path_factory: pytest.TempPathFactory, posts: list[tuple[str, int, int, int]], least: int, most: int, votes: int
) -> None:
    rows = [post(one, PostTypeId=kind, ParentId=parent, Score=score) for kind, one, parent, score in posts]
    path = dump(tmp_path_factory.mktemp("posts"), *rows)
    documents, dropped = read(path, min_answers=least, max_answers=most, min_question_score=votes)
    assert sum(len(document.fields["posts"]) for document in documents) + sum(dropped.values()) == len(posts)


def test_the_form_of_starcoder2_has_control_tokens_users_and_votes(tmp_path: Path) -> None:
    path = dump(
        tmp_path,
        question(1, AcceptedAnswerId=2, OwnerUserId=9),
        answer(2, 1, OwnerUserId=7, Score=4, Body="<p>&lt;issue_closed&gt;</p>"),
        answer(3, 1, OwnerUserId=9, Score=8),
    )
    documents, _ = read(path, form="starcoder2")
    parts = documents[0].parts
    assert parts is not None
    assert [part.token for part in parts if isinstance(part, Control)] == [
        "<issue_start>", "<issue_comment>", "<issue_comment>", "<issue_closed>"
    ]  # fmt: skip
    assert parts[1] == "username_0: Title 1\n\npost 1\n"
    assert {parts[3], parts[5]} == {
        "username_1: <issue_closed>\nUpvotes: 4 [selected answer]\n", "username_0: post 3\nUpvotes: 8\n"
    }  # fmt: skip
    assert read(path, form="starcoder2", min_answers=3)[0] == []


def test_tags_of_both_writings_are_read() -> None:
    assert tags_of("<python><list>") == tags_of("|python|list|") == ["python", "list"]
    assert tags_of("") == []


def post_text(html: str) -> str:
    return post_texts([html])[0]


PIECES = st.sampled_from([
    "<p>a</p>", "<b>", "</b>", "<pre><code>x\n</code></pre>", "<code>y", "</code>", "<pre>", "<ul><li>z",
    "<table><tr>q",
    "<a href='", "<!--", "-->", "&lt;", "<title>", "<h1>t</h1>", "\n", " w ", "<", ">", "<div>", "</p>",
])  # fmt: skip
MADE = st.lists(PIECES, max_size=6).map("".join)


@given(st.lists(MADE, min_size=2, max_size=4))
def test_posts_read_together_say_what_each_says_alone(posts: list[str]) -> None:
    together = post_texts(posts)
    assert len(together) == len(posts)
    alone = [post_text(post) for post in posts]
    assert [re.sub(r"[\s`]", "", text) for text in together] == [re.sub(r"[\s`]", "", text) for text in alone]


def test_html_becomes_text_with_fences() -> None:
    code = "<pre class='lang-py'><code>if a &lt; b:\n    x\n</code></pre>"
    assert post_text(f"<p>Try <code>x</code>:</p>\n\n{code}\n\n<p>ok &amp; done</p>") == (
        "Try `x`:\n\n```\nif a < b:\n    x\n```\n\nok & done"
    )
    assert post_text("<ul>\n<li>a</li>\n<li>b <b>c</b></li>\n</ul>") == "- a\n- b c"
    assert post_text("<pre><code>```\nx</code></pre>") == "````\n```\nx\n````"
    assert post_text("<p>a" * 3) == "aaa"
    assert post_text("") == ""
    assert post_text("<div>" * 100_000) == ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<posts>\n<row Id='1'", "damaged XML at line 2"),
        ("<posts>\n<row Id='1'>\n", "damaged XML at line"),
        ("<posts>\n<row Id='1' Body='&lol;' />\n</posts>", "damaged XML at line 2.*lol"),
        ("<posts>\n<row Id='1' Id='2' />\n</posts>", "damaged XML at line 2"),
        ("<posts>\n<row Body='\x00' />\n</posts>", "damaged XML at line 2"),
        ("<posts>\n<row Body='" + "x" * 10_100_000 + "' />\n</posts>", "damaged XML"),
        ("<!DOCTYPE p [<!ENTITY a 'b'>]>\n<posts>\n</posts>", "does not begin with <posts>"),
        ("<?xml version='1.0'?><!DOCTYPE p><posts/>", "does not begin with <posts>"),
        ("<comments></comments>", "does not begin with <posts>"),
        ("", "does not begin with <posts>"),
    ],
)
def test_damaged_and_hostile_files_are_input_errors(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "Posts.xml"
    path.write_text(body, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        list(make_file_kind("stackexchange", {}, Counts(), tmp_path / "scratch")(path))
    assert caught.value.exit_code == 2


def test_mistakes_in_the_settings_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"settings.form: .*\n.*pile"):
        make_file_kind("stackexchange", {"form": "markdown"}, Counts(), tmp_path)

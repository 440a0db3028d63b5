"""Kind `stackexchange`: questions with their best answers, from a site's Posts.xml.

The dump has one `<row/>` a line, all content in attributes, and answers usually, but not always, behind their question.
So the file is read once, and its posts are written to scratch files by the number of their question; each scratch file
holds the posts of a range of questions and fits in memory whatever the size of the dump. Then each is joined by itself,
which gives the questions in the order of their numbers.

Sources: EleutherAI's stackexchange-dataset as used in The Pile (Gao et al. 2020) for the form `pile`; Lozhkov et al.
2024 (StarCoder2, arXiv 2402.19173) for the form `starcoder2`. Posts are under CC BY-SA: the fields keep the numbers of
all posts and users, and the licence, for attribution.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import orjson
from lxml import etree
from pydantic import Field

from megacode.base.errors import DataError
from megacode.config.quantity import Frozen
from megacode.corpus.document import Control, Counts, Document, Part
from megacode.corpus.html_text import post_text
from megacode.corpus.kinds.records import draw

_QUESTION, _ANSWER = "1", "2"
# A document type would have to stand before <posts>: so entities, and bombs made of them, are refused unread.
_HEAD = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,100}\?>)?\s*<posts[\s>]")
_RANGE = 1 << 15  # numbers of questions in one scratch file: about 50 MB of a dump
_BUFFER_BYTES = 16 << 20
_KEYS = (
    "Id", "PostTypeId", "ParentId", "AcceptedAnswerId", "Score", "Body", "Title", "Tags", "OwnerUserId",
    "ContentLicense", "CreationDate",
)  # fmt: skip


class StackExchangeSettings(Frozen):
    """Settings of the kind `stackexchange`.

    Attributes:
        form: `pile`: "Q:", the question, "A:" and each answer as text; `starcoder2`: control tokens, users and votes.
        min_score: answers with fewer votes are left out unless they are accepted.
        max_answers: the most answers of a question, the accepted one and then those with most votes.
        min_answers: questions for which fewer answers are left are dropped.
        min_question_score: questions with fewer votes are dropped.
        seed: of the order of answers in the form `starcoder2`.
    """

    form: Literal["pile", "starcoder2"] = "pile"
    min_score: int = 3
    max_answers: int = Field(default=3, ge=1)
    min_answers: int = Field(default=1, ge=1)
    min_question_score: int | None = None
    seed: int = 0


def stackexchange_documents(
    path: Path, settings: StackExchangeSettings, counts: Counts, scratch: Path
) -> Iterator[Document]:
    """Yield the kept questions of one site, with their answers, in the order of their numbers.

    Args:
        path: a Posts.xml; the site is the name of its directory.
        settings: which questions and answers are kept, and how they are written.
        counts: counts questions and answers that are left out.
        scratch: directory for temporary files of about the dump's size.

    Raises:
        DataError: the file is no Posts.xml, is damaged, or declares entities; with the line.
    """
    site = path.resolve().parent.name
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{site}.", dir=scratch) as place:
        buckets = _Buckets(Path(place))
        for post in read_posts(path):
            buckets.add(post, counts)
        for file in buckets.close():
            yield from _joined(file, site, settings, counts)


def read_posts(path: Path) -> Iterator[dict[str, str]]:
    """Yield the attributes of each row of a Posts.xml, in bounded memory.

    Raises:
        DataError: as in `stackexchange_documents`.
    """
    with path.open("rb") as file:
        if not _HEAD.match(file.read(4_096)):
            fix = "give the Posts.xml of a StackExchange dump, in UTF-8 and without a document type"
            raise DataError("it does not begin with <posts>", str(path), fix)
    try:
        # Attributes above 10 MB are refused by lxml itself.
        rows = etree.iterparse(
            str(path), tag="row", resolve_entities=False, no_network=True, huge_tree=False, recover=False
        )
        for _, row in rows:
            yield dict(row.attrib)
            # Read rows would stay below their parent: memory would grow with the file.
            row.clear()
            parent = row.getparent()
            while row.getprevious() is not None:
                del parent[0]
    except etree.XMLSyntaxError as error:
        fix = "unpack the dump again; a file cut short ends inside an element"
        raise DataError(f"damaged XML at line {error.lineno}: {error.msg}", str(path), fix) from None


class _Buckets:
    """Posts in scratch files, each with the posts of a range of questions.

    Args:
        place: an empty directory.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._lines: dict[int, list[bytes]] = defaultdict(list)
        self._bytes = 0
        self._seen: set[int] = set()

    def add(self, post: dict[str, str], counts: Counts) -> None:
        """Keep a question or an answer; count other posts."""
        kind = post.get("PostTypeId")
        question = post.get("Id" if kind == _QUESTION else "ParentId", "")
        if kind not in (_QUESTION, _ANSWER):
            return counts.drop("neither question nor answer", post.get("Body", ""))
        # isdecimal alone accepts digits of other scripts and thousands of them.
        if not (question.isascii() and question.isdecimal() and len(question) < 16 and post.get("Id") and "Body" in post):
            return counts.drop("attributes missing", post.get("Body", ""))
        line = orjson.dumps([post.get(key) for key in _KEYS])
        bucket = int(question) // _RANGE
        self._lines[bucket].append(line)
        self._bytes += len(line)
        if self._bytes > _BUFFER_BYTES:
            self._flush()
        return None

    def _flush(self) -> None:
        # Files are opened one at a time: large dumps have thousands.
        for bucket, lines in self._lines.items():
            with (self._place / f"{bucket:012d}").open("ab") as file:
                file.write(b"\n".join(lines) + b"\n")
        self._seen.update(self._lines)
        self._lines.clear()
        self._bytes = 0

    def close(self) -> Iterator[Path]:
        """Yield the scratch files in the order of their questions; each is removed afterwards."""
        self._flush()
        for bucket in sorted(self._seen):
            path = self._place / f"{bucket:012d}"
            yield path
            path.unlink()


def _joined(file: Path, site: str, settings: StackExchangeSettings, counts: Counts) -> Iterator[Document]:
    """Yield the documents of one scratch file."""
    questions: dict[str, dict[str, Any]] = {}
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with file.open("rb") as lines:
        for line in lines:
            post = dict(zip(_KEYS, orjson.loads(line), strict=True))
            if post["PostTypeId"] == _QUESTION:
                questions[post["Id"]] = post
            else:
                answers[post["ParentId"]].append(post)
    for name in sorted(questions, key=int):
        document = _document(questions[name], answers.pop(name, []), site, settings, counts)
        if document is not None:
            yield document
    for orphans in answers.values():
        for post in orphans:
            counts.drop("answer without its question", post["Body"])


def _score(post: dict[str, Any]) -> int:
    try:
        return int(post["Score"] or 0)
    except ValueError:
        return 0


def _document(
    question: dict[str, Any], answers: list[dict[str, Any]], site: str, settings: StackExchangeSettings, counts: Counts
) -> Document | None:
    """Return a question with its kept answers, or None if it is dropped."""
    accepted = question["AcceptedAnswerId"]
    if settings.min_question_score is not None and _score(question) < settings.min_question_score:
        return counts.drop("question with few votes", question["Body"])
    kept = [post for post in answers if post["Id"] == accepted or _score(post) >= settings.min_score]
    kept.sort(key=lambda post: (post["Id"] != accepted, -_score(post), len(post["Id"]), post["Id"]))
    for post in answers:
        if post not in kept[: settings.max_answers]:
            counts.drop("answer with few votes" if post not in kept else "answers beyond the most", post["Body"])
    kept = kept[: settings.max_answers]
    if len(kept) < settings.min_answers:
        return counts.drop("question with few kept answers", question["Body"])
    fields = {
        "site": site,
        "title": question["Title"] or "",
        "tags": tags_of(question["Tags"]),
        "score": _score(question),
        "license": question["ContentLicense"],
        "date": question["CreationDate"],
        "posts": [post["Id"] for post in (question, *kept)],
        "users": [post["OwnerUserId"] for post in (question, *kept)],
    }
    name = f"{site}/{question['Id']}"
    if settings.form == "pile":
        return Document(_pile(question, kept), name, fields)
    parts = _starcoder2(question, kept, name, settings.seed)
    return Document("".join(part for part in parts if isinstance(part, str)), name, fields, parts)


def tags_of(written: str | None) -> list[str]:
    """Return the tags of a question: `<a><b>` in older dumps, `|a|b|` in newer ones."""
    return [tag for tag in re.split(r"[<>|]+", written or "") if tag]


def _pile(question: dict[str, Any], answers: list[dict[str, Any]]) -> str:
    title, body = question["Title"] or "", post_text(question["Body"])
    asked = f"Q:\n\n{title}\n\n{body}\n\n"
    return asked + "\n\n".join(f"A:\n\n{post_text(post['Body'])}" for post in answers) + "\n"


def _starcoder2(question: dict[str, Any], answers: list[dict[str, Any]], name: str, seed: int) -> tuple[Part, ...]:
    users: dict[str, int] = {}

    def user(post: dict[str, Any]) -> str:
        # Posts of deleted users are by nobody else.
        return f"username_{users.setdefault(post['OwnerUserId'] or 'post ' + post['Id'], len(users))}"

    parts: list[Part] = [
        Control("<issue_start>"),
        f"{user(question)}: {question['Title'] or ''}\n\n{post_text(question['Body'])}\n",
    ]
    for post in sorted(answers, key=lambda post: draw(name, post["Id"], seed)):
        selected = " [selected answer]" if post["Id"] == question["AcceptedAnswerId"] else ""
        text = f"{user(post)}: {post_text(post['Body'])}\nUpvotes: {_score(post)}{selected}\n"
        parts += [Control("<issue_comment>"), text]
    return (*parts, Control("<issue_closed>"))

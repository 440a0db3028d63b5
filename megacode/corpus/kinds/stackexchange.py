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

import io
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import orjson
from lxml import etree
from pydantic import Field

from megacode.base.errors import DataError
from megacode.config.quantity import Frozen
from megacode.corpus.document import Control, Counts, Document, Part
from megacode.corpus.html_text import post_texts
from megacode.corpus.kinds.records import draw

_QUESTION, _ANSWER = "1", "2"
# A document type would have to stand before <posts>: so entities, and bombs made of them, are refused unread.
_HEAD = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,100}\?>)?\s*<posts[\s>]")
_RANGE = 1 << 14  # numbers of questions in one scratch file: about 25 MB of a dump
_BUFFER_BYTES = 32 << 20
_BLOCK_BYTES = 1 << 16


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
        for lines in buckets.take():
            yield from _joined(lines, site, settings, counts)


def read_posts(path: Path) -> Iterator[dict[str, str]]:
    """Yield the attributes of each row of a Posts.xml, in bounded memory.

    Raises:
        DataError: as in `stackexchange_documents`.
    """
    with path.open("rb") as file:
        if not _HEAD.match(file.read(4_096)):
            fix = "give the Posts.xml of a StackExchange dump, in UTF-8 and without a document type"
            raise DataError("it does not begin with <posts>", str(path), fix)
    rows = _Rows()
    # No tree is built. Attributes above 10 MB are refused by lxml itself. If entities were not resolved, libxml2 would
    # hand `&amp;` over as `&#38;`. There are only XML's own five: the head was found to have no document type.
    parser = etree.XMLParser(
        target=rows, resolve_entities="internal", no_network=True, huge_tree=False, recover=False, load_dtd=False
    )
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                parser.feed(block)
                yield from rows.taken()
            parser.close()
    except etree.XMLSyntaxError as error:
        # The exception may tell of the end of the file; the log begins with the cause.
        cause = parser.feed_error_log[0] if len(parser.feed_error_log) else error
        line, message = getattr(cause, "line", error.lineno), getattr(cause, "message", error.msg)
        fix = "unpack the dump again; a file cut short ends inside an element"
        raise DataError(f"damaged XML at line {line}: {message}", str(path), fix) from None


class _Rows:
    """Collects the attributes of rows while lxml parses."""

    def __init__(self) -> None:
        self._rows: list[dict[str, str]] = []

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """Take an element."""
        if tag == "row":
            self._rows.append(dict(attributes))

    def close(self) -> None:
        """End: lxml asks for this method."""

    def taken(self) -> list[dict[str, str]]:
        """Return the rows since the last call."""
        taken, self._rows = self._rows, []
        return taken


class _Buckets:
    """Posts in scratch files, each with the posts of a range of questions.

    Args:
        place: an empty directory.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        # One buffer each: a hundred thousand small objects would take several times their size.
        self._lines: dict[int, bytearray] = defaultdict(bytearray)
        self._bytes = 0
        self._seen: set[int] = set()

    def add(self, post: dict[str, str], counts: Counts) -> None:
        """Keep a question or an answer; count other posts."""
        kind = post.get("PostTypeId")
        question = post.get("Id" if kind == _QUESTION else "ParentId", "")
        if kind not in (_QUESTION, _ANSWER):
            return counts.drop("neither question nor answer", post.get("Body", ""))
        # isdecimal alone accepts digits of other scripts and thousands of them.
        if not (
            question.isascii() and question.isdecimal() and len(question) < 16 and post.get("Id") and "Body" in post
        ):
            return counts.drop("attributes missing", post.get("Body", ""))
        line = orjson.dumps(post, option=orjson.OPT_APPEND_NEWLINE)
        bucket = int(question) // _RANGE
        self._lines[bucket] += line
        self._bytes += len(line)
        if self._bytes > _BUFFER_BYTES:
            self._flush()
        return None

    def _flush(self) -> None:
        # Files are opened one at a time: large dumps have thousands.
        for bucket, lines in self._lines.items():
            with (self._place / f"{bucket:012d}").open("ab") as file:
                file.write(lines)
        self._seen.update(self._lines)
        self._lines.clear()
        self._bytes = 0

    def take(self) -> Iterator[bytes]:
        """Yield the posts of each range of questions, in the order of the ranges; each scratch file is removed."""
        for bucket in sorted(self._seen.union(self._lines)):
            path, written = self._place / f"{bucket:012d}", b""
            if bucket in self._seen:
                written = path.read_bytes()
                path.unlink()
            # The last ones were never written.
            yield written + self._lines.pop(bucket, b"")


def _joined(lines: bytes, site: str, settings: StackExchangeSettings, counts: Counts) -> Iterator[Document]:
    """Yield the documents of one range of questions, whose posts are JSON lines."""
    questions: dict[str, dict[str, str]] = {}
    answers: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in io.BytesIO(lines):
        post = orjson.loads(line)
        if post["PostTypeId"] == _QUESTION:
            # Dumps that were joined may hold a question twice; the first one stays.
            if questions.setdefault(post["Id"], post) is not post:
                counts.drop("number of an earlier question", post["Body"])
        else:
            answers[post["ParentId"]].append(post)
    for name in sorted(questions, key=int):
        document = _document(questions[name], answers.pop(name, []), site, settings, counts)
        if document is not None:
            yield document
    for orphans in answers.values():
        for post in orphans:
            counts.drop("answer without its question", post["Body"])


def _score(post: dict[str, str]) -> int:
    try:
        return int(post.get("Score", 0))
    except ValueError:
        return 0


def _document(
    question: dict[str, str], answers: list[dict[str, str]], site: str, settings: StackExchangeSettings, counts: Counts
) -> Document | None:
    """Return a question with its kept answers, or None if it is dropped."""
    accepted = question.get("AcceptedAnswerId")
    given_up = "answer to a dropped question"
    if settings.min_question_score is not None and _score(question) < settings.min_question_score:
        counts.drop("question with few votes", question["Body"])
        for post in answers:
            counts.drop(given_up, post["Body"])
        return None
    # The accepted answer first, then by votes; of equal ones the older.
    ranked = sorted(answers, key=lambda post: (post["Id"] != accepted, -_score(post), len(post["Id"]), post["Id"]))
    kept: list[dict[str, str]] = []
    for post in ranked:
        if post["Id"] != accepted and _score(post) < settings.min_score:
            counts.drop("answer with few votes", post["Body"])
        elif len(kept) == settings.max_answers:
            counts.drop("answers beyond the most", post["Body"])
        else:
            kept.append(post)
    if len(kept) < settings.min_answers:
        counts.drop("question with few kept answers", question["Body"])
        for post in kept:
            counts.drop(given_up, post["Body"])
        return None
    fields = {
        "site": site,
        "title": question.get("Title", ""),
        "tags": tags_of(question.get("Tags", "")),
        "score": _score(question),
        "license": question.get("ContentLicense"),
        "date": question.get("CreationDate"),
        "posts": [post["Id"] for post in (question, *kept)],
        "users": [post.get("OwnerUserId") for post in (question, *kept)],
    }
    name = f"{site}/{question['Id']}"
    if settings.form == "pile":
        return Document(_pile(question, kept), name, fields)
    parts = _starcoder2(question, kept, name, settings.seed)
    return Document("".join(part for part in parts if isinstance(part, str)), name, fields, parts)


def tags_of(written: str) -> list[str]:
    """Return the tags of a question: `<a><b>` in older dumps, `|a|b|` in newer ones."""
    return [tag for tag in re.split(r"[<>|]+", written) if tag]


def _pile(question: dict[str, str], answers: list[dict[str, str]]) -> str:
    asked, *answered = post_texts([post["Body"] for post in (question, *answers)])
    begin = f"Q:\n\n{question.get('Title', '')}\n\n{asked}\n\n"
    return begin + "\n\n".join(f"A:\n\n{text}" for text in answered) + "\n"


def _starcoder2(question: dict[str, str], answers: list[dict[str, str]], name: str, seed: int) -> tuple[Part, ...]:
    users: dict[str, int] = {}

    def user(post: dict[str, str]) -> str:
        # Posts of deleted users are by nobody else.
        owner = post.get("OwnerUserId", f"post {post['Id']}")
        return f"username_{users.setdefault(owner, len(users))}"

    answers = sorted(answers, key=lambda post: draw(name, post["Id"], seed))
    asked, *answered = post_texts([post["Body"] for post in (question, *answers)])
    parts: list[Part] = [Control("<issue_start>"), f"{user(question)}: {question.get('Title', '')}\n\n{asked}\n"]
    for post, text in zip(answers, answered, strict=True):
        selected = " [selected answer]" if post["Id"] == question.get("AcceptedAnswerId") else ""
        parts += [Control("<issue_comment>"), f"{user(post)}: {text}\nUpvotes: {_score(post)}{selected}\n"]
    return (*parts, Control("<issue_closed>"))

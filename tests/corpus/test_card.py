"""The data card: figures that add up over shards, and a page that no document can break out of."""

from __future__ import annotations

import json
import random
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from megacode.corpus.card_page import render_card
from megacode.corpus.document import Control, Counts, Document
from megacode.corpus.engine import run_recipe
from megacode.corpus.recipe import read_recipe
from megacode.corpus.tally import Tally, bin_start, length_bin, octaves, text_key
from megacode.corpus.visible import one_line, pieces

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)> \u202eevil\u202c \x1b[31m {{ 7 * 7 }}"
TEXTS = st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40), max_size=30)


class Elements(HTMLParser):
    """The names and attributes of all elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes = set[str](), set[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_hostile_documents_stay_text(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [
        {"text": f"{HOSTILE} {rng.random()} " * 100, "id": f"{HOSTILE}{n}", "language": HOSTILE, "license": HOSTILE}
        for n in range(20)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "text", "inputs": str(tmp_path / "in.jsonl")}
    recipe = read_recipe(
        {"name": "h", "output": str(tmp_path / "out"), "sources": {"s": source}, "duplicates": {}}, "r"
    )
    manifest = run_recipe(recipe, f"megacode {HOSTILE}")
    assert manifest is not None
    page = (tmp_path / "out/corpus/card.html").read_text(encoding="utf-8")
    found = Elements(page)
    assert {"pre", "svg", "mark", "details"} <= found.tags
    assert not found.tags & {"script", "img", "iframe", "link", "object"}
    assert not [name for name in found.attributes if name.startswith("on") or name in ("src", "href")]
    for unseen in ("\u202e", "\u202c", "\x1b"):
        assert unseen not in page
    assert "U+202E RIGHT-TO-LEFT OVERRIDE" in page
    assert "{{ 7 * 7 }}" in page
    assert render_card(manifest) == page
    assert max(len(part) for part in page.split("<pre>")[1:]) < 10_000


@given(TEXTS, st.integers(0, 30))
def test_tallies_and_counts_of_parts_add_up_to_the_whole(texts: list[str], cut: int) -> None:
    def tally(some: list[str]) -> Tally:
        made = Tally()
        for text in some:
            raw = text.encode()
            made.add(Document(text, text, {"language": text[:1]}), raw, text_key(raw, 1))
        return made

    def counts(some: list[str]) -> Counts:
        made = Counts()
        for text in some:
            made.drop("short" if len(text) < 5 else "long", text)
        return made

    parts, whole = Tally.of_json(tally(texts[:cut]).as_json()), tally(texts)
    parts.merge(tally(texts[cut:]))
    assert parts.as_json() == whole.as_json()
    dropped = Counts.of_json(counts(texts[cut:]).as_json())
    dropped.merge(counts(texts[:cut]))
    assert dropped.as_json() == counts(texts).as_json()


@given(st.integers(0, 1 << 40))
def test_a_length_lies_in_its_bin_and_bins_are_narrow(length: int) -> None:
    number = length_bin(length)
    assert bin_start(number) <= length < max(bin_start(number + 1), length + 1)
    assert length_bin(bin_start(number)) <= number
    assert bin_start(number + 1) <= max(1, bin_start(number)) * 1.25 + 1
    assert octaves({number: 1}) == {length.bit_length() - 1: 1}


def test_quantiles_are_within_a_bin_of_the_exact_ones() -> None:
    tally, rng = Tally(), random.Random(4)
    lengths = sorted(rng.randrange(1, 50_000) for _ in range(2_000))
    for length in lengths:
        tally.add(Document("", "", {}), b"x" * length, rng.getrandbits(64))
    for share in (0.5, 0.9, 0.99):
        exact = lengths[int(share * len(lengths)) - 1]
        assert exact <= tally.quantile(share) <= exact * 1.14
    assert tally.quantile(1.0) == tally.longest == lengths[-1]


@given(st.text())
def test_shown_text_has_no_character_that_cannot_be_seen(text: str) -> None:
    shown = one_line(text, 80)
    assert len(shown) <= 80
    assert not [one for one in shown if one in "\u202e\u2066\u200b\x1b\x00\ufeff\n"]
    marks = [piece for piece, is_mark in pieces(text) if is_mark]
    assert all(mark.startswith("U+") for mark in marks)


@given(
    st.lists(
        st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.builds(Control, st.text("ab<>", min_size=1)))
    )
)
def test_a_document_is_read_back_as_it_was_written(parts: list[str | Control]) -> None:
    text = "".join(part for part in parts if isinstance(part, str))
    one = Document(text, "a:1", {"path": "x"}, tuple(parts))
    again = Document.of_line(one.line())
    has_control = any(isinstance(part, Control) for part in parts)
    assert (again.text, again.id, again.fields) == (text, "a:1", {"path": "x"})
    assert again.parts == (tuple(parts) if has_control else None)

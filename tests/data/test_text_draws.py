"""Documents drawn for tokenizers: by weight and key, in any order and division alike, and held-out ones never."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import ConfigError, DataError
from megacode.data.text_draws import SmallestKeys, TextSource, _by_document, draw, sources_of
from megacode.data.texts import ControlToken, Texts

OFFERS = st.lists(st.tuples(st.integers(0, 50), st.text("aé☃😀", min_size=1, max_size=9)), max_size=30)


def size(texts: Sequence[tuple[bytes, ...]]) -> int:
    return sum(len(part) for text in texts for part in text)


@given(OFFERS, st.integers(0, 60), st.integers(0, 60), st.randoms())
def test_the_smallest_keys_are_kept_whatever_the_order(offers, most, fewer, rng: random.Random) -> None:
    offers = list({key: (key, (text.encode(),)) for key, text in offers}.values())
    ways = []
    for _ in range(2):
        kept = SmallestKeys(most)
        for key, text in offers:
            kept.offer(key, text)
        assert kept.offered_bytes == size([text for _, text in offers])
        assert size([text for _, text, _ in kept._heap]) < max(1, 2 * most)
        ways.append((kept.take(most), kept.take(min(fewer, most))))
        rng.shuffle(offers)
    assert ways[0] == ways[1]
    everything = b"".join(text[0] for _, text in sorted(offers))
    for taken, bytes_ in zip(ways[0], (most, min(fewer, most)), strict=True):
        # The beginning of all documents in the order of their keys; a character that does not fit is cut off.
        joined = b"".join(text[0] for text in taken)
        assert everything.startswith(joined)
        assert min(bytes_, len(everything)) - 3 <= len(joined) <= bytes_


@given(st.lists(st.lists(st.one_of(st.just(ControlToken("<x>")), st.text("ab", max_size=2)), max_size=4), max_size=6))
def test_texts_are_given_back_to_their_documents(documents) -> None:
    flat = [[part if isinstance(part, str) else "" for part in parts] for parts in documents]
    assert [list(texts) for texts in _by_document(Texts.of(documents))] == flat


def write(path: Path, texts: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def source(name: str, weight: object, *paths: Path) -> TextSource:
    return TextSource(name, Fraction(str(weight)), tuple(map(str, paths)))


@pytest.fixture(scope="module")
def words() -> list[str]:
    return [f"document {number} " + "word " * (number % 40) for number in range(600)]


def test_draws_depend_on_the_documents_alone(words, tmp_path: Path) -> None:
    whole = source("a", 1, write(tmp_path / "whole.jsonl", words))
    parts = [write(tmp_path / f"part{number}.jsonl", words[::-1][number::3]) for number in (2, 0, 1)]
    ways = [draw([way], ["text"], 20_000, 5)[0] for way in (whole, source("a", 1, *parts))]
    assert ways[0].training == ways[1].training
    assert ways[0].held_out == ways[1].held_out
    assert len(ways[0].training) > 50
    assert ways[0].trained_bytes == 20_000
    assert draw([whole], ["text"], 20_000, 6)[0].training != ways[0].training


def test_a_document_is_held_out_by_its_own_text_and_in_every_source(words, tmp_path: Path) -> None:
    code, text = write(tmp_path / "code.jsonl", words), write(tmp_path / "text.jsonl", [*words[300:], *"abcdefgh"])
    both = draw([source("code", 1, code), source("text", 1, text)], ["text"], 1_000_000, 0)
    trained = {document for drawn in both for document in drawn.training}
    held_out = {document for drawn in both for document in drawn.held_out}
    assert 10 < len(held_out) < 60
    # The last document of a source may be cut, so it may look like no document.
    assert len(trained) > 400
    assert not trained & held_out
    alone = draw([source("code", 1, code)], ["text"], 0, 0)[0]
    assert set(alone.held_out) == set(both[0].held_out)
    assert alone.training == ()


def test_sources_give_their_shares_and_a_scarce_one_limits_all(words, tmp_path: Path, caplog) -> None:
    big, small = write(tmp_path / "big.jsonl", words), write(tmp_path / "small.jsonl", words[:40])
    sources = [
        source("big", 0.9, big),
        source("small", 0.1, small),
        source("seen", 0, write(tmp_path / "c.jsonl", "é")),
    ]
    drawn = draw(sources, ["text"], 10_000, 0)
    assert [one.trained_bytes for one in drawn] == [9000, 1000, 0]
    assert "all sources give less" not in caplog.text
    drawn = draw([source("big", 0.5, big), source("small", "1/2", small)], ["text"], 1 << 40, 0)
    assert drawn[0].trained_bytes == drawn[1].trained_bytes == drawn[1].bytes - drawn[1].held_out_bytes
    assert "the source small has less text than its share of 1.0 TiB" in caplog.text.replace("1 TiB", "1.0 TiB")


def test_control_tokens_are_left_out_and_several_keys_make_one_document(tmp_path: Path) -> None:
    rows = [{"text": ["a", {"token": "<x>"}, "b"], "title": "t"}, {"text": "c", "title": ""}, {"text": [], "title": ""}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = draw([source("a", 1, path)], ["text", "title"], 100, 0)[0]
    assert sorted([*drawn.training, *drawn.held_out]) == [(b"a", b"b", b"t"), (b"c",)]
    assert (drawn.documents, drawn.bytes) == (2, 4)


def test_bad_records_end_the_draw_or_are_counted(tmp_path: Path, caplog) -> None:
    path = write(tmp_path / "a.jsonl", ["good\u0000 \u0007 text", "more"] * 20)
    path.write_bytes(b'{"text": "\xff"}\n' + path.read_bytes() + b'{"no": 1}\n')
    with pytest.raises(DataError, match="UTF-8"):
        draw([source("a", 1, path)], ["text"], 100, 0)
    drawn = draw([source("a", 1, path)], ["text"], 100, 0, skip_bad=True)[0]
    assert (drawn.bad, drawn.documents) == (2, 40)
    assert "the source a: skipped 2 bad records" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["code"], "not of the form NAME=WEIGHT:GLOB"),
        (["=1:a"], "not of the form"),
        (["code=0.5"], "not of the form"),
        *(
            ([f"code={bad}:a"], f"{bad!r} is not a weight")
            for bad in ("half", "nan", "inf", "-1", "1e999999999", "1/3", "٣")
        ),
        (["code=1:a", "code=1:b"], "the source code is given twice"),
        ([], "there is no input"),
    ],
)
def test_mistakes_in_sources_are_named(settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        sources_of([], settings)
    assert caught.value.problems[0].fix


def test_sources_are_read_from_settings_or_inputs() -> None:
    assert sources_of([], ["a=.50:s3://b/c=d:*"]) == [TextSource("a", Fraction(1, 2), ("s3://b/c=d:*",))]
    assert sources_of(["x", "y"], []) == [TextSource("input", Fraction(1), ("x", "y"), "--input")]
    with pytest.raises(ConfigError, match="give either --input or --source"):
        sources_of(["x"], ["a=1:x"])


def test_what_cannot_be_drawn_from_is_named(words, tmp_path: Path, caplog) -> None:
    full, empty = write(tmp_path / "full.jsonl", words), write(tmp_path / "empty.jsonl", ["", [], [""]])
    with pytest.raises(DataError, match="the source void contains no text"):
        draw([source("full", 1, full), source("void", 0, empty)], ["text"], 100, 0)
    with pytest.raises(DataError, match="there is no such file") as caught:
        draw([source("code", 1, tmp_path / "nowhere")], ["text"], 100, 0)
    assert caught.value.problems[0].where.startswith("--source")
    with pytest.raises(ConfigError, match="is in the source a as well"):
        draw([source("a", 1, full), source("b", 1, tmp_path / "*ll.jsonl")], ["text"], 100, 0)
    one = [source("one", 1, write(tmp_path / "one.jsonl", ["text"]))]
    # One of these seeds holds the only document out, another one does not.
    ends = set()
    for seed in range(60):
        try:
            ends.add(len(draw(one, ["text"], 100, seed)[0].training))
        except DataError as error:
            ends.add(error.problems[0].what)
    assert ends == {1, "the source one has no documents to train on: all 1 are held out"}
    assert "the source one: none of its 1 documents is held out" in caplog.text

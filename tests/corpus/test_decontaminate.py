from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.corpus.decontaminate import (
    Benchmark,
    Detector,
    Hit,
    Index,
    MatchWriter,
    contamination_report,
    contamination_table,
    detector_of,
    items_from_file,
    items_made_in,
    read_benchmarks,
    read_matches,
    write_benchmarks,
)
from megacode.data.demo_items import build_demo_tasks
from megacode.data.items import Item

WORDS = [f"word{number}" for number in range(2000)]
LICENCE = " ".join(f"permission{number} is granted to whom it may concern" for number in range(12))
QUOTE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity"
)
FORMULA = "x_1^2 + x_2^2 + x_3^2 + x_4^2 = r^2, sin(a + b) = sin a cos b + cos a sin b, cos(2 a) = 1 - 2 sin^2 a"


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def benchmark(items: Sequence[Item], name: str = "suite") -> Benchmark:
    return Benchmark(name, tuple(items), dict.fromkeys((item.task for item in items), "0"))


def searched(index: Index, texts: Sequence[str], place: Path) -> tuple[Detector, list[Hit]]:
    writer = MatchWriter(place, index)
    writer.add(texts[:5])
    writer.add(texts[5:])
    writer.close()
    detector = detector_of([place], index, [np.ones(len(texts), bool)])
    matches, count = read_matches(place, index)
    assert count == len(texts)
    return detector, detector.hits(matches)


def test_all_of_300_verbatim_items_are_found_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(0)
    items = [Item("qa", number, prose(rng, rng.choice([5, 8, 12, 13, 14, 40, 120]))) for number in range(300)]
    texts = [prose(rng, 200) for _ in range(600)]
    places = rng.sample(range(600), 300)
    for place, item in zip(places, items, strict=True):
        # Other case, punctuation and line ends are the same words.
        planted = item.text.upper().replace(" ", "\n" if place % 2 else ", ")
        texts[place] = f"{texts[place][:400]} {planted}. {texts[place][400:]}"
    _, hits = searched(Index([benchmark(items)]), texts, tmp_path)
    assert {(hit.document, hit.item) for hit in hits} == set(zip(places, range(300), strict=True))
    assert all(hit.share == 1 and hit.span in items[hit.item].text for hit in hits)
    assert all(hit.words == len(items[hit.item].text.split()) for hit in hits)


@pytest.mark.parametrize("common", [LICENCE, QUOTE, FORMULA], ids=["licence", "quote", "formula"])
def test_what_many_documents_share_is_no_item(common: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    items = [Item("qa", 0, common), Item("qa", 1, prose(rng, 30)), Item("qa", 2, f"{common} {prose(rng, 60)}")]
    texts = [f"{prose(rng, 60)} {common} {prose(rng, 60)}" for _ in range(30)] + [prose(rng, 100) for _ in range(200)]
    texts[100] += " " + items[1].text
    texts[101] += " " + items[2].text
    detector, hits = searched(Index([benchmark(items)]), texts, tmp_path)
    assert {(hit.document, hit.item) for hit in hits} == {(100, 1), (101, 2)}
    assert contamination_report(detector, hits)["suites"][0]["tasks"]["qa"]["too_common"] == 1


def test_copies_that_duplicates_drop_make_no_item_common(tmp_path: Path) -> None:
    rng = random.Random(2)
    item = Item("qa", 0, prose(rng, 40))
    texts = [f"{prose(rng, 50)} {item.text}"] * 30 + [prose(rng, 50) for _ in range(20)]
    index = Index([benchmark([item])])
    _, hits = searched(index, texts, tmp_path)
    assert not hits
    kept = np.array([number == 0 or number >= 30 for number in range(50)])
    matches, _ = read_matches(tmp_path, index)
    hits = detector_of([tmp_path], index, [kept]).hits(matches[kept[matches[:, 0]]])
    assert [(hit.document, hit.item) for hit in hits] == [(0, 0)]


def test_half_of_an_item_counts_and_a_third_does_not(tmp_path: Path) -> None:
    rng = random.Random(3)
    words = prose(rng, 90).split()
    texts = [
        " ".join([prose(rng, 20), *words[:60], prose(rng, 20)]),
        " ".join([prose(rng, 20), *words[:30], prose(rng, 20)]),
        # Half of its runs, but never 13 words in a row.
        " , ".join(" ".join([*words[begin : begin + 12], "other"]) for begin in range(0, 90, 6)),
    ]
    _, hits = searched(Index([benchmark([Item("qa", 0, " ".join(words))])]), texts, tmp_path)
    assert [(hit.document, hit.words) for hit in hits] == [(0, 60)]
    assert hits[0].share == pytest.approx(51 / 81)
    assert hits[0].span == " ".join(words[:60])[:300]


def test_a_question_without_its_answer_is_found_if_it_is_long(tmp_path: Path) -> None:
    rng = random.Random(4)
    long, short, answer = prose(rng, 14), prose(rng, 7), prose(rng, 60)
    items = [Item("qa", 0, f"{long} {answer}", long), Item("qa", 1, f"{short} {answer}", short)]
    _, hits = searched(Index([benchmark(items)]), [f"{prose(rng, 30)} {one}" for one in (long, short)], tmp_path)
    assert [(hit.document, hit.item, hit.span) for hit in hits] == [(0, 0, long)]


def test_words_that_most_items_of_a_task_share_are_its_template(tmp_path: Path) -> None:
    rng = random.Random(5)
    template = prose(rng, 30)
    items = [Item("qa", number, f"{template} {prose(rng, 20)}") for number in range(40)]
    texts = [f"{prose(rng, 20)} {template} {prose(rng, 20)}", f"{prose(rng, 9)} {items[7].text}"]
    _, hits = searched(Index([benchmark(items)]), texts, tmp_path)
    assert [(hit.document, hit.item) for hit in hits] == [(1, 7)]


def test_items_of_few_words_must_stand_word_for_word_and_tiny_ones_are_counted(tmp_path: Path) -> None:
    items = [Item("qa", 0, "What is seven times eight, exactly?"), Item("qa", 1, "Is it so?"), Item("qa", 2, "")]
    texts = ["What is seven times\neight exactly", "what is seven times nine exactly", "is it so", "seven times eight"]
    detector, hits = searched(Index([benchmark(items)]), texts, tmp_path)
    assert [(hit.document, hit.item, hit.words) for hit in hits] == [(0, 0, 6)]
    assert hits[0].span == "What is seven times eight, exactly"
    assert contamination_report(detector, hits)["suites"][0]["tasks"]["qa"]["too_short"] == 2


def test_items_that_repeat_themselves_are_handled_in_linear_time(tmp_path: Path) -> None:
    # Each run of words of the second item is at 500 places of it, and at 5,000 of the document.
    items = [Item("qa", 0, "zero " * 3_000), Item("qa", 1, "one two three four five six " * 500)]
    texts = ["zero " * 30_000, "one two three four five six " * 5_000]
    detector, hits = searched(Index([benchmark(items)]), texts, tmp_path)
    assert [(hit.document, hit.item) for hit in hits] == [(1, 1)]
    assert contamination_report(detector, hits)["suites"][0]["tasks"]["qa"]["too_common"] == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab \n", max_size=120), max_size=8), st.integers(0, 8))
def test_matches_do_not_depend_on_what_is_searched_together(texts: list[str], cut: int) -> None:
    items = [Item("qa", 0, "a b a b a b a a b b a b a a b"), Item("qa", 1, "b b a a b b"), Item("qa", 2, "a a a a a a")]
    index = Index([benchmark(items)])
    first, second = index.matches(texts[:cut]), index.matches(texts[cut:])
    second[:, 0] += len(texts[:cut])
    assert np.concatenate([first, second]).tolist() == index.matches(texts).tolist()


def test_the_report_is_by_task_with_the_words_in_common(tmp_path: Path) -> None:
    rng = random.Random(6)
    items = [Item(task, number, prose(rng, 30)) for task in ("easy", "hard") for number in range(3)]
    texts = [items[0].text, f"{items[0].text} {items[1].text}", prose(rng, 50)]
    detector, hits = searched(Index([benchmark(items)]), texts, tmp_path)
    report = contamination_report(detector, hits)
    easy, hard = (report["suites"][0]["tasks"][task] for task in ("easy", "hard"))
    assert report["documents"] == 2
    assert (easy["items"], easy["items_hit"], easy["documents"]) == (3, 2, 2)
    assert (hard["items"], hard["items_hit"], hard["documents"]) == (3, 0, 0)
    assert easy["examples"][0]["span"] == items[0].text[:300]
    assert json.loads(json.dumps(report)) == report
    assert contamination_table(report).row_count == 2


def test_matches_of_other_items_are_refused(tmp_path: Path) -> None:
    index = Index([benchmark([Item("qa", 0, "one two three four five six")])])
    with pytest.raises(DataError, match="no complete matches"):
        read_matches(tmp_path / "absent", index)
    searched(index, ["some text"], tmp_path)
    other = Index([benchmark([Item("qa", 0, "six five four three two one")])])
    with pytest.raises(DataError, match="searched for other benchmark items"):
        read_matches(tmp_path, other)


def test_no_items_match_nothing(tmp_path: Path) -> None:
    detector, hits = searched(Index([]), ["a text"], tmp_path)
    assert not hits
    assert contamination_report(detector, hits)["suites"] == []


def test_a_user_s_items_are_read_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a b"}\n\n{"question": "c?", "answer": "d", "task": "t"}\n{"text": "e", "id": 4}\n')
    found = items_from_file(path)
    assert [(item.task, item.number, item.text, item.question) for item in found.items] == [
        ("mine", 1, "a b", ""),
        ("mine", 4, "e", ""),
        ("t", 3, "c? d", "c?"),
    ]
    assert [(task, row["items"]) for task, row in found.facts()["tasks"].items()] == [("mine", 2), ("t", 1)]
    write_benchmarks(tmp_path / "all.jsonl", [found, found])
    assert read_benchmarks(tmp_path / "all.jsonl") == [found, found]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file has no items"),
        ("\n{", r"mine.jsonl:2: the line is no JSON object"),
        ('{"text": "a"}\n{"prompt": "b"}', r"mine.jsonl:2: the line is no item"),
        ('{"text": 3}', "the line is no item"),
        ("[1]", "the line is no JSON object"),
    ],
)
def test_a_file_that_holds_no_items_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        items_from_file(tmp_path / "mine.jsonl")


def test_an_absent_file_of_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the items cannot be read"):
        items_from_file(tmp_path / "absent.jsonl")


def test_the_demo_s_items_are_read_from_where_they_were_made(tmp_path: Path) -> None:
    rng = random.Random(7)
    texts = ["\n".join(f"{prose(rng, 8)} the_same {prose(rng, 3)} the_same" for _ in range(40)) for _ in range(12)]
    index = build_demo_tasks({"code": texts}, tmp_path, seed=0)
    found = items_made_in(tmp_path, "demo")
    assert {task: row["items"] for task, row in index["tasks"].items()} == {
        task: row["items"] for task, row in found.facts()["tasks"].items()
    }
    everything = " ".join(texts).split()
    for item in found.items:
        assert item.text.split()[-2] in everything
        assert item.text.startswith(item.question)
    _, hits = searched(Index([found]), texts, tmp_path / "matches")
    assert len({(hit.task, hit.item) for hit in hits}) > 0.9 * len(found.items)
    (tmp_path / index["tasks"]["demo_bits_code"]["file"]).unlink()
    with pytest.raises(DataError, match="its items cannot be read"):
        items_made_in(tmp_path, "demo")
    with pytest.raises(DataError, match="there are no items of the suite demo here"):
        items_made_in(tmp_path / "absent", "demo")

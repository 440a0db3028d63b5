from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from megacode.base.errors import ConfigError, DataError
from megacode.data.demo_items import ENDINGS, SuiteSizes, build_demo_tasks, passages, split_ending

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"]


def prose(seed: int, lines: int = 30) -> str:
    words = [[WORDS[(seed * 7 + i * 5 + j * 3) % 13] for j in range(9)] for i in range(lines)]
    return "".join(" ".join(f"{word}{seed}" for word in line) + ".\n" for line in words)


def code(seed: int, lines: int = 30) -> str:
    return "".join(f"    value{seed}_{i % 5} = value{seed}_{(i + 1) % 5} + offset\n" for i in range(lines))


@pytest.fixture
def heldout() -> dict[str, list[str]]:
    return {"text": [prose(i) for i in range(6)], "code": [code(i) for i in range(6)]}


def read(out: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (out / f"{task}.jsonl").read_bytes().splitlines()]


def test_the_index_names_every_task_with_its_items_hash_and_chance(heldout, tmp_path):
    index = build_demo_tasks(heldout, tmp_path, seed=0, sizes=SuiteSizes(10, 5, 4))
    assert index == json.loads((tmp_path / "items.json").read_text())
    assert {name: (task["items"], task.get("chance")) for name, task in index["tasks"].items()} == {
        "demo_endings_text": (10, 0.25), "demo_bits_text": (5, None),
        "demo_endings_code": (10, 0.25), "demo_bits_code": (5, None), "demo_next_word_code": (4, None),
    }  # fmt: skip
    assert all(len(read(tmp_path, name)) == task["items"] for name, task in index["tasks"].items())


def test_the_true_ending_follows_the_context_and_the_false_ones_come_from_other_documents(heldout, tmp_path):
    build_demo_tasks(heldout, tmp_path, seed=0)
    for source in ("text", "code"):
        documents, items = heldout[source], read(tmp_path, f"demo_endings_{source}")
        assert len(items) > 10
        for item in items:
            own = documents[item["document"]]
            assert item["context"] + item["endings"][item["answer"]] in own
            false = [text.strip() for i, text in enumerate(item["endings"]) if i != item["answer"]]
            assert len(set(item["endings"])) == ENDINGS
            assert not any(text in own for text in false)
            assert all(any(text in other for other in documents) for text in false)


def test_all_endings_begin_with_the_same_white_space_and_break_off_at_a_word(heldout, tmp_path):
    build_demo_tasks(heldout, tmp_path, seed=0)
    items = read(tmp_path, "demo_endings_code")
    assert len(items) > 10
    for item in items:
        assert len({re.match(r"\s*", text)[0] for text in item["endings"]}) == 1
        assert item["endings"][0][0].isspace()
        assert item["context"] == item["context"].rstrip()


def test_answers_are_spread_over_the_four_places(tmp_path):
    build_demo_tasks({"text": [prose(i, 60) for i in range(20)]}, tmp_path, seed=0)
    answers = [item["answer"] for item in read(tmp_path, "demo_endings_text")]
    assert len(answers) == SuiteSizes().endings
    assert min(answers.count(place) for place in range(ENDINGS)) >= 8


def test_the_next_word_of_code_follows_its_prompt_and_stands_in_it(heldout, tmp_path):
    build_demo_tasks(heldout, tmp_path, seed=0)
    items = read(tmp_path, "demo_next_word_code")
    assert len(items) > 10
    for item in items:
        assert f"{item['prompt']} {item['word']}" in heldout["code"][item["document"]]
        assert re.search(rf"\b{item['word']}\b", item["prompt"])
        assert not item["prompt"][-1].isspace()


def test_the_same_documents_and_seed_give_the_same_bytes(heldout, tmp_path):
    first = build_demo_tasks(heldout, tmp_path / "a", seed=0)
    assert build_demo_tasks(heldout, tmp_path / "b", seed=0) == first
    other = build_demo_tasks(heldout, tmp_path / "c", seed=1)["tasks"]
    assert all(other[name]["sha256"] != task["sha256"] for name, task in first["tasks"].items())


def test_passages_take_one_of_each_document_before_a_second_of_any():
    documents = [prose(0, 60), prose(1, 4), prose(2, 60)]
    found = list(passages(documents, 150, "key"))
    assert {item.document for item in found[:3]} == {0, 1, 2}
    assert all(documents[item.document][item.position :].startswith(item.text) for item in found)
    assert all(item.position == 0 or documents[item.document][item.position - 1] == "\n" for item in found)
    for document in range(3):
        spans = sorted((item.position, item.position + 150) for item in found if item.document == document)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_short_documents_count_for_bits_only():
    assert list(passages(["a short line\n"], 100, "key")) == []
    assert [item.text for item in passages(["a short line\n", " \n"], 100, "key", whole=False)] == ["a short line\n"]


@pytest.mark.parametrize("text", ["x" * 300, " " * 300, "1 2 3 4 5 " * 30, "a" * 150 + " " + "b" * 150])
def test_a_passage_without_words_to_tell_apart_is_no_item(text):
    assert split_ending(next(passages([text], 224, "key"))) is None


def test_too_few_documents_are_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match=r"held-out documents of text give no items: at least 4 passages.*\n.*fraction"):
        build_demo_tasks({"text": [prose(0)]}, tmp_path, seed=0)
    with pytest.raises(DataError, match="held-out documents of code give no items"):
        build_demo_tasks({"code": []}, tmp_path, seed=0)


def test_a_source_without_tasks_is_an_error_that_names_those_with(tmp_path):
    with pytest.raises(ConfigError, match=r"no task for the source 'web'.*\n.*text, code, markup"):
        build_demo_tasks({"web": ["x"]}, tmp_path, seed=0)

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from megacode.base.files import RunDir, write_text
from megacode.config.config_file import dump_config, validate
from megacode.config.run import RunConfig
from megacode.data import ngram_runs
from megacode.data.contamination import contamination, describe
from megacode.data.indexed import IndexedDatasetWriter, bin_path, idx_path
from megacode.data.items import Item, items_of, task_items
from megacode.data.ngram_runs import NGRAM, rolling_hashes
from megacode.data.windows import open_source, source_sizes
from megacode.plan.phases import build_schedule

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "tu", "ne", "ri", "so") for b in ("ban", "der", "fis", "gol", "hep")]
LENGTH = 64


def documents(seed: int, count: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(20, 60))) for _ in range(count)]


TEXTS = {"text": documents(1), "code": documents(2)}


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([text for texts in TEXTS.values() for text in texts], trainer)
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(path / "tokenizer.json"))
    return path


class Run:
    """A run directory without weights: a config, data sets, and what a model that was read so far says of itself."""

    def __init__(self, path: Path, tokenizer_dir: Path, **changes: Any) -> None:
        self.path, self.tokenizer_dir = path, tokenizer_dir
        self.tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        path.mkdir()
        for name, texts in TEXTS.items():
            self.write_source(name, texts)
        self.config = self.write_config(**changes)
        self.schedule = build_schedule(self.config, source_sizes(self.config))

    def write_source(self, name: str, texts: list[str]) -> None:
        with IndexedDatasetWriter(self.path / name, np.uint16) as writer:
            for text in texts:
                ids = np.array([*self.tokenizer.encode(text).ids, 0], dtype=np.uint16)
                writer.add(ids, np.array([len(ids)]))

    def write_config(self, **changes: Any) -> RunConfig:
        rate = {"schedule": "constant", "peak": 1e-3}
        model = {"num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4}
        document = {
            "name": "tiny",
            "model": model,
            "tokenizer": {"kind": "huggingface", "path": str(self.tokenizer_dir)},
            "sources": {name: {"path": str(self.path / name)} for name in TEXTS},
            "validation": {"fraction": 0.1},
            "phases": [
                {"name": "first", "samples": 40, "blend": {"text": 0.75, "code": 0.25}, "learning_rate": rate},
                {"name": "second", "samples": 400, "blend": {"text": 0.5, "code": 0.5}, "learning_rate": rate},
            ],
            "train": {"seq_length": LENGTH, "global_batch_size": 4, "micro_batch_size": 2},
            "run_dir": str(self.path),
            **changes,
        }
        config = validate(document, "test")
        write_text(RunDir(self.path).config, dump_config(config))
        return config

    def facts(self, clock: int) -> dict[str, Any]:
        return {"consumed_samples": clock, "fingerprints": self.schedule.fingerprints()}

    def note(self, items: list[Item], clock: int = 40, **settings: Any) -> dict[str, Any]:
        return contamination(self.path, self.facts(clock), items, **settings)

    def heldout(self, name: str) -> list[str]:
        return TEXTS[name][open_source(self.config, name).train_documents :]

    def brute_force(self, text: str, clock: int) -> float:
        """The share of a text's tokens in overlaps, from sets of tuples and the schedule sample by sample."""
        read = {name: np.zeros(open_source(self.config, name).train_tokens, dtype=bool) for name in TEXTS}
        for sample in range(clock):
            draw = self.schedule.draw(sample)
            read[draw.source][draw.first_token : draw.first_token + LENGTH + 1] = True
        stand = set()
        for name, seen in read.items():
            ids = open_source(self.config, name).data.read(0, len(seen)).tolist()
            stand |= {tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1) if seen[i : i + NGRAM].all()}
        shares = []
        for variant in (text, " " + text):
            ids = self.tokenizer.encode(variant).ids
            hit = [tuple(ids[i : i + NGRAM]) in stand for i in range(len(ids) - NGRAM + 1)]
            inside = [any(hit[max(0, i - NGRAM + 1) : i + 1]) for i in range(len(ids))]
            shares.append(sum(inside) / max(1, len(ids)))
        return max(shares)


@pytest.fixture
def run(tmp_path: Path, tokenizer_dir: Path) -> Run:
    return Run(tmp_path / "run", tokenizer_dir)


def passages(texts: list[str], task: str = "t") -> list[Item]:
    return [Item(task, number, " ".join(text.split()[2:18])) for number, text in enumerate(texts)]


@pytest.mark.parametrize("clock", [1, 12, 40, 150])
def test_overlaps_are_those_of_a_search_by_hand(run, clock):
    items = passages([*TEXTS["text"], *TEXTS["code"]])
    expected = [run.brute_force(item.text, clock) for item in items]
    note = run.note(items, clock)
    task = note["tasks"]["t"]
    assert note["share_checked"] == 1.0
    assert task["overlapping"] == sum(share > 0 for share in expected)
    assert task["mostly_overlapping"] == sum(share >= 0.8 for share in expected)
    worst = sorted(expected, reverse=True)[:10]
    assert [one["share_of_tokens"] for one in note["worst"]] == pytest.approx([x for x in worst if x], abs=1e-4)
    assert 0 < task["overlapping"] < len(items)


def test_what_is_held_out_does_not_overlap_however_long_the_run(run):
    note = run.note(passages(run.heldout("text") + run.heldout("code")), clock=440)
    assert note["tasks"]["t"]["items"] > 10
    assert note["tasks"]["t"]["overlapping"] == 0
    assert note["worst"] == []
    assert note["sources"]["text"]["samples_read"] == run.schedule.counts_at(440)["text"]
    tokens = open_source(run.config, "text").train_tokens
    assert tokens - LENGTH <= note["sources"]["text"]["distinct_tokens_checked"] <= tokens


def test_the_worst_examples_name_the_document_that_holds_them(run):
    stranger = "somewhere else entirely, words that nobody wrote before us here"
    item = Item("t", 7, f"{stranger} {' '.join(TEXTS['code'][5].split()[4:19])} {stranger}")
    note = run.note([item], clock=440)
    (one,) = note["worst"]
    assert (one["task"], one["item"], one["source"], one["document"]) == ("t", 7, "code", 5)
    assert one["text"].strip() in TEXTS["code"][5]
    assert len(one["text"].split()) >= 11
    assert 0 < one["share_of_tokens"] < 0.8
    assert note["tasks"]["t"]["mostly_overlapping"] == 0


def test_blocks_share_enough_tokens_to_miss_nothing(run, monkeypatch):
    items = passages(TEXTS["text"])
    whole = run.note(items, 150)
    monkeypatch.setattr(ngram_runs, "_BLOCK", NGRAM + 2)
    assert {**run.note(items, 150), "seconds": 0} == {**whole, "seconds": 0}


def test_a_budget_checks_an_even_sample_and_says_how_much(run):
    items = passages(TEXTS["text"])
    whole, part = run.note(items, 440), run.note(items, 440, budget=10 * LENGTH)
    assert part["samples_checked"] == 10
    assert part["tokens_checked"] == 10 * LENGTH
    assert part["share_checked"] == pytest.approx(10 / 440)
    assert part["samples_read"] == 440
    assert 0 < part["tasks"]["t"]["overlapping"] < whole["tasks"]["t"]["overlapping"]
    assert run.note(items, 440, budget=10 * LENGTH)["tasks"] == part["tasks"]
    distinct = sum(entry["distinct_tokens_checked"] for entry in whole["sources"].values())
    assert run.note(items, 440, budget=distinct + 4 * LENGTH)["share_checked"] == 1.0, "repetitions cost nothing"


def test_with_a_small_vocabulary_thirteen_tokens_of_few_bytes_are_no_overlap(run, monkeypatch):
    stranger = "QZ XJ WV"
    ids = run.tokenizer.encode(TEXTS["code"][5]).ids
    words = run.tokenizer.decode(ids[3 : 3 + NGRAM + 1]).strip()
    items = [Item("t", 0, f"{stranger} {words} {stranger}")]
    size = len(words)
    monkeypatch.setattr(ngram_runs, "RUN_BYTES", size - 8)
    assert run.note(items, 440)["tasks"]["t"]["overlapping"] == 1
    monkeypatch.setattr(ngram_runs, "RUN_BYTES", size + 8)
    note = run.note(items, 440)
    assert note["tasks"]["t"]["overlapping"] == 0
    assert note["worst"] == []
    monkeypatch.setattr("megacode.data.contamination.LARGE_VOCABULARY", 300)
    assert run.note(items, 440)["tasks"]["t"]["overlapping"] == 1


def test_short_items_are_told_apart(run):
    note = run.note([Item("t", 0, "kaban loder"), *passages(TEXTS["text"][:3])], 440)
    assert (note["tasks"]["t"]["items"], note["tasks"]["t"]["too_short"]) == (4, 1)


def test_a_template_that_stands_in_every_item_counts_for_none(run):
    phrase = " ".join(TEXTS["text"][0].split()[:14])
    own = documents(77, 15)
    items = [Item("asks", number, f"{phrase} {' '.join(text.split()[:9])}") for number, text in enumerate(own)]
    note = run.note([*items, Item("other", 0, phrase)], 440)
    assert note["template_runs_left_out"] > 0
    assert note["tasks"]["asks"]["overlapping"] == 0
    few = run.note(items[:10], 440)
    assert few["template_runs_left_out"] == 0
    assert few["tasks"]["asks"]["overlapping"] == 10


def test_a_source_that_is_gone_or_changed_is_named_and_the_others_are_checked(run):
    for path in (bin_path(run.path / "code"), idx_path(run.path / "code")):
        path.unlink()
    items = passages([*TEXTS["text"][:10], *TEXTS["code"][:10]])
    note = run.note(items, 440)
    assert any("source code: " in what and "no such file" in what for what in note["not_covered"])
    assert note["sources"]["code"]["samples_checked"] == 0
    assert note["share_checked"] == pytest.approx(run.schedule.counts_at(440)["text"] / 440)
    assert 0 < note["tasks"]["t"]["overlapping"] <= 11
    run.write_source("code", documents(9))
    note = run.note(items, 440)
    assert "source code: the data set has changed since the run read it" in note["not_covered"]
    run.write_source("text", documents(10))
    note = run.note(items, 440)
    assert note["checked"] is False
    assert "text: the data set has changed since the run read it" in note["why"]


def test_a_config_that_tells_another_past_is_not_believed(run):
    run.write_config(seed=99)
    note = run.note(passages(TEXTS["text"]))
    assert note["checked"] is False
    assert "seed" in note["why"]


def test_what_cannot_be_known_is_said(run, tokenizer_dir):
    items = passages(TEXTS["text"])
    unknown = {"checked": False, "why": "the model's run is not known"}
    assert contamination(None, run.facts(4), items) == unknown
    assert contamination(run.path, None, items) == unknown
    assert contamination(run.path, {"name": "foreign"}, items) == unknown
    older = run.facts(4)
    del older["fingerprints"][0]["read"]
    assert "by another version: export the model again" in contamination(run.path, older, items)["why"]
    run.write_config(init={"from": "/runs/before"})
    assert run.note(items)["not_covered"] == ["data that its initial weights had read before this run: /runs/before"]
    model = {"num_layers": 1, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "vocab_size": 320}
    run.write_config(tokenizer=None, model=model)
    assert run.note(items)["why"] == "the run has no tokenizer"


def test_no_items_are_no_overlap(run):
    note = run.note([])
    assert (note["checked"], note["tasks"], note["worst"]) == (True, {}, [])


def test_hashes_are_those_of_the_formula():
    ids = np.random.default_rng(0).integers(0, 60_000, 40)
    found = rolling_hashes(ids)
    assert len(found) == 28
    base = 0x9E3779B97F4A7C15
    for place, value in enumerate(found.tolist()):
        expected = 0
        for token in ids[place : place + NGRAM].tolist():
            expected = (expected * base + token + 1) % 2**64
        assert value == expected
    assert len(rolling_hashes(ids[:12])) == 0
    assert len(rolling_hashes(ids[:13])) == 1


def test_items_are_the_question_with_its_true_answer():
    def one(arguments: Any, target: Any) -> str:
        sample = {"doc_id": 3, "arguments": arguments, "target": target}
        (item,) = items_of("t", [sample])
        assert (item.task, item.number) == ("t", 3)
        return item.text

    endings = [("The sun", " rises"), ("The sun", " sleeps")]
    assert one(endings, 1) == "The sun sleeps"
    assert one(endings, "1") == "The sun sleeps"
    assert one([("all of it",)], "all of it") == "all of it"
    assert one([("def f(", {"until": ["\n"]})], "x") == "def f( x"
    assert one([("Q? A:", {"until": ["\n"]})], [" yes", "no"]) == "Q? A: yes"
    assert one([("Q?", {})], None) == "Q?"


def test_a_note_is_one_line_on_the_terminal(run):
    assert describe(contamination(None, None, [])) == "contamination: not checked, the model's run is not known"
    line = describe(run.note(passages(TEXTS["text"][:4]), 440))
    assert line == (
        "contamination: 4 of 4 items overlap the data read (13 tokens in a row); "
        "100 % of the 28.2k tokens read were checked"
    )


@pytest.mark.slow
def test_items_come_from_lm_evals_own_tasks(tmp_path):
    from megacode.data.demo_items import SuiteSizes, build_demo_tasks
    from megacode.eval.suites import load_suite
    from megacode.eval.task_loading import load_tasks

    files = sorted((Path(os.__file__).parent / "email").glob("*.py"))[:12]
    build_demo_tasks({"code": [path.read_text("utf-8") for path in files]}, tmp_path, 0, SuiteSizes(6, 3, 4))
    tasks, _ = load_tasks(load_suite("demo", tmp_path, tmp_path), run_code=False)
    found = {name: task_items(name, task) for name, task in tasks.items()}
    lines = {name: [json.loads(x) for x in (tmp_path / f"{name}.jsonl").read_bytes().splitlines()] for name in tasks}
    assert [item.text for item in found["demo_endings_code"]] == [
        line["context"] + line["endings"][line["answer"]] for line in lines["demo_endings_code"]
    ]
    assert [item.text for item in found["demo_bits_code"]] == [line["text"] for line in lines["demo_bits_code"]]
    words = [f"{line['prompt']} {line['word']}" for line in lines["demo_next_word_code"]]
    assert [item.text for item in found["demo_next_word_code"]] == words
    assert len(task_items("demo_bits_code", tasks["demo_bits_code"], limit=2)) == 2

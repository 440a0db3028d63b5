from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from megacode.base.errors import ConfigError
from megacode.eval.scores import (
    item_lines,
    prompts_digest,
    questions_digest,
    render_scores,
    standard_error,
    task_scores,
)
from megacode.statistics.variance import profile

NATS = np.random.default_rng(0)


def bits_items(n: int) -> list[tuple[float, int]]:
    return [(-float(NATS.gamma(4.0, 1.0) * size * 0.3), int(size)) for size in NATS.integers(200, 900, n)]


def test_the_error_of_a_mean_is_the_sample_deviation_over_the_root_of_n():
    values = [1, 0, 0, 1, 1, 0, 1, 1]
    assert standard_error(values, 5 / 8) == pytest.approx(np.std(values, ddof=1) / math.sqrt(8))


def test_the_error_of_bits_per_byte_agrees_with_a_bootstrap():
    items = bits_items(200)
    nats, sizes = np.array(items).T
    bits = -nats.sum() / math.log(2) / sizes.sum()
    draws = NATS.integers(0, 200, (4_000, 200))
    bootstrap = (-nats[draws].sum(1) / math.log(2) / sizes[draws].sum(1)).std()
    assert standard_error(items, bits) == pytest.approx(bootstrap, rel=0.08)


def test_no_error_is_given_where_the_formula_does_not_fit():
    assert standard_error([1], 1.0) is None
    assert standard_error([1, 0, 0], 0.9) is None  # not their mean
    assert standard_error(["a", "b"], 0.5) is None
    assert standard_error([(-1.0, 2), (-2.0, 3)], 99.0) is None
    assert standard_error([(1, 0), (0, 0)], 0.3) is None  # labels and answers, for F1


def test_scores_carry_their_errors_and_filters_only_where_there_are_several():
    samples = [{"filter": "none", "acc": value} for value in (1, 0, 1, 1)]
    assert task_scores({"acc,none": 0.75}, samples) == {
        "acc": 0.75, "acc_stderr": pytest.approx(0.25)
    }  # fmt: skip
    two = [{"filter": name, "exact_match": 1.0} for name in ("strict", "loose") for _ in range(2)]
    assert set(task_scores({"exact_match,strict": 1.0, "exact_match,loose": 1.0}, two)) == {
        "exact_match,strict", "exact_match,strict_stderr", "exact_match,loose", "exact_match,loose_stderr"
    }  # fmt: skip


@pytest.mark.parametrize("bits", [False, True])
def test_items_of_one_passage_count_together_as_in_the_statistics(bits):
    generator = np.random.default_rng(3)
    passages = np.repeat(np.arange(12), 5)
    values = generator.normal(size=60) + generator.normal(size=12)[passages]
    sizes = generator.integers(5, 90, 60) if bits else np.ones(60)
    score = -values.sum() / math.log(2) / sizes.sum() if bits else values.mean()
    results = list(zip(values.tolist(), sizes.tolist(), strict=True)) if bits else values.tolist()
    units = -values[None] / math.log(2) / sizes.mean() if bits else values[None]
    one = profile(units, sizes / sizes.mean(), passages)
    expected = math.sqrt(np.sum(one.items**2))
    assert standard_error(results, score, passages.tolist()) == pytest.approx(expected)
    assert standard_error(results, score) < 0.8 * expected
    assert standard_error(results, score, [0] * 60) is None
    lines = [
        {"filter": "none", "m": value, "cluster": f"p{passage}"}
        for value, passage in zip(results, passages, strict=True)
    ]
    assert task_scores({"m,none": score}, lines)["m_stderr"] == pytest.approx(expected)
    for line in lines[5:]:
        del line["cluster"]
    alone = [0] * 5 + list(range(1, 56))
    assert task_scores({"m,none": score}, lines)["m_stderr"] == pytest.approx(standard_error(results, score, alone))


def test_questions_are_the_same_whoever_answers_them():
    lines = [{"item": 0, "doc_hash": "a", "acc": 1}, {"item": 1, "doc_hash": "b", "acc": 0}]
    assert questions_digest(lines) == questions_digest([{**line, "acc": 0} for line in lines])
    assert questions_digest(lines) != questions_digest(lines[:1])


def test_the_table_shows_scores_intervals_and_chance():
    console = Console(width=120, record=True, quiet=True)
    document = {
        "suite": "demo", "model": {"path": "/models/x"}, "seconds": 3.0, "settings": {"device": "cpu"},
        "scores": {"endings": {"acc": 0.4, "acc_stderr": 0.05}, "bits": {"bits_per_byte": 2.5}},
        "chance": {"endings": 0.25},
        "tasks": {"endings": {"items": 80, "seconds": 1.0}, "bits": {"items": 32, "seconds": 2.0}},
        "left_out": {"humaneval": "it runs code"}, "contamination": {"checked": False, "why": "the run is not known"},
        "means": {
            "reasoning": {"score": 0.4, "stderr": 0.05, "of": 2, "missing": ["piqa"]},
            "code": {"score": None, "stderr": None, "of": 1, "missing": ["humaneval"]},
        },
    }  # fmt: skip
    with console.capture() as captured:
        console.quiet = False
        render_scores(document, console)
    shown = captured.get()
    assert "left out: humaneval: it runs code" in shown
    assert "contamination: not checked, the run is not known" in shown
    means = next(line for line in shown.splitlines() if "reasoning" in line)
    assert means.split() == ["reasoning", "0.400", "0.098", "2", "piqa"]
    for part in ("endings", "0.400", "0.098", "0.25", "80", "bits_per_byte ↓", "2.500", "3.0 s on cpu"):
        assert part in shown


def test_the_table_is_whole_at_80_columns_with_the_overlap_beside_each_task():
    console = Console(width=80, record=True, file=io.StringIO())
    tasks = ["demo_endings_markup", "demo_next_word_code", "a_task_whose_name_is_longer_than_any_column"]
    metrics = {"acc_mutual_info": 0.7125, "acc_mutual_info_stderr": 0.0509}
    overlap = {task: {"items": 80, "overlapping": 43} for task in tasks}
    looked = {"checked": True, "tasks": overlap, "share_checked": 1.0, "tokens_read": 1_000_000}
    document = {
        "suite": "demo", "model": {"path": "/a/long/path" * 9}, "seconds": 3.0, "settings": {"device": "cpu"},
        "scores": {task: dict(metrics) for task in tasks}, "chance": dict.fromkeys(tasks, 0.25),
        "left_out": {}, "means": {},
        "tasks": {task: {"items": 80, "seconds": 1.0} for task in tasks}, "contamination": looked,
    }  # fmt: skip
    render_scores(document, console)
    shown = console.export_text()
    assert "…" not in shown
    for task in tasks[:2]:
        row = next(line for line in shown.splitlines() if task in line)
        assert row.split() == [task, "acc_mutual_info", "0.713", "0.100", "0.25", "80", "43"]
    assert "/a/long/path" * 9 in shown
    assert "contamination: 129 of 240 items" in shown


def test_items_say_what_was_asked_and_which_passage_they_belong_to():
    sample = {"doc_id": 0, "filter": "none", "doc_hash": "h", "metrics": ["acc"], "acc": 1, "target": 0,
              "filtered_resps": [], "arguments": [("Q: x", " y")], "doc": {"passage": "p"}}  # fmt: skip
    plain, reworded = (item_lines("t", [{**sample, "arguments": [(text, " y")]}])[0] for text in ("Q: x", "R: x"))
    assert "cluster" not in plain
    assert prompts_digest([plain]) != prompts_digest([reworded])
    one, other = (item_lines("t", [{**sample, "doc": {"passage": text}}], cluster="passage")[0] for text in "pq")
    assert one["cluster"] == item_lines("t", [sample], cluster="passage")[0]["cluster"] != other["cluster"]
    with pytest.raises(ConfigError, match=r"clusters\.t: the task's documents have no field 'text'"):
        item_lines("t", [sample], cluster="text")

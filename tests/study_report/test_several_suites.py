"""Suites with the same names of tasks and means: no number stands under another suite's name, whatever is scored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from megacode.study.grid import Cell
from megacode.study_report.document import report_document
from megacode.study_report.earlier_suites import told_metric
from megacode.study_report.journeys import _same_seeds
from tests.study_report.conftest import TASKS, TINY_SUITE, Make, change_json, score_files
from tests.study_report.made_suites import BITS, MadeSuite, MadeTask

GOLD = MadeSuite(
    "gold",
    {name: MadeTask(BITS, task.items, 1.2, spread=0.2) for name, task in TASKS.items()},
    {name: dict.fromkeys(tasks, BITS) for name, tasks in TINY_SUITE.categories.items()},
    TINY_SUITE.means,
)
Scored = dict[str, Any]


def recipe(scored: Any = lambda cell, suite: True) -> Scored:
    return {"suites": [TINY_SUITE, GOLD], "scored": scored}


@pytest.mark.parametrize("order", [("tiny", "gold"), ("gold", "tiny")])
@pytest.mark.parametrize("partly", [False, True])
def test_a_name_is_one_suite_s_whichever_suites_are_scored_so_far(
    make: Make, order: tuple[str, str], partly: bool
) -> None:
    def scored(cell: Cell, suite: str) -> bool:
        return not (partly and (cell.arm, cell.seed, suite) == ("cooled", 2, "gold"))

    report = report_document(make(2, recipe(scored), suites=list(order)))
    units = {"tiny": "points", "gold": "bits per byte"}
    of = {row["metric"]: (row["suite"], row["unit"]) for row in report["metrics"]}
    assert of["mean/total"] == (order[0], units[order[0]])
    assert of[f"mean/{order[1]}.total"] == (order[1], units[order[1]])
    assert len(of) == len(report["metrics"]) == 12
    keys = [(row["arm"], row["metric"]) for row in report["scores"]]
    assert len(keys) == len(set(keys)) == 36
    compared = {(row["arm"], row["metric"]): (row["unit"], row["family"]) for row in report["comparisons"]}
    assert compared["half", "mean/total"] == (units[order[0]], "primary")
    assert compared["half", f"mean/{order[1]}.total"] == (units[order[1]], "exploratory")
    assert not any("is declared" in line for line in report["missing"])


@pytest.mark.parametrize("order", [("tiny", "gold"), ("gold", "tiny")])
def test_the_waterfall_shows_the_scores_of_the_table(make: Make, order: tuple[str, str]) -> None:
    report = report_document(make(2, recipe(), suites=list(order)))
    table = {(row["arm"], row["metric"]): row["value"] for row in report["scores"]}
    (cooled,) = report["waterfall"]
    for step, arm in zip(cooled["steps"], ("half", "cooled"), strict=True):
        assert len(step["values"]) == 12
        for metric, value in step["values"].items():
            assert value == pytest.approx(table[arm, metric])


def test_an_undone_suite_declared_first_keeps_its_names(make: Make) -> None:
    study = make(2, {"suites": [GOLD]}, suites=["to-code", "gold"], compare={"primary": ["mean/total"]})
    report = report_document(study)
    assert "mean/gold.total" in {row["metric"] for row in report["metrics"]}
    assert "mean/total" not in {row["metric"] for row in report["metrics"]}
    assert "mean/total is declared, and not all scored arms have it" in report["missing"]


def test_a_mean_in_bits_has_no_accuracy_of_the_paper_beside(make: Make) -> None:
    arms = {"base": {"phases": ["text"], "paper": "text-only"}, "half": {"phases": ["balanced"], "paper": "code-50"}}
    for order, there in ((["tiny", "gold"], True), (["gold", "tiny"], False)):
        report = report_document(make(2, recipe(), suites=order, arms=arms))
        assert ("mean/total" in {row["metric"] for row in report["paper"]}) is there


def test_a_phase_end_that_was_scored_in_another_way_is_no_step(make: Make) -> None:
    study = make(2)
    assert len(report_document(study, without=["boolq"])["waterfall"]) == 1

    def change(document: Any) -> None:
        document["settings"]["limit"] = 8

    changed = 0
    for path in score_files(study):
        if json.loads(path.read_text())["model"]["megacode"]["phase"] == "balanced":
            change_json(path, change)
            changed += 1
    assert changed == 2
    # `half` ends there, so all its tasks are left out of the comparison; the waterfall is about `cooled` alone.
    assert report_document(study, without=list(TASKS)[:2] + ["humaneval"][:0] or [])["waterfall"] == []


def test_steps_are_means_over_the_same_seeds() -> None:
    def step(**by_seed: dict[str, float]) -> Any:
        means = {metric: sum(seeds.values()) / len(seeds) for metric, seeds in by_seed.items()}
        return {"phase": "", "node": "", "tokens": 0, "values": means, "by_seed": by_seed, "files": {}}

    first, second = step(a={"1": 1.0, "2": 3.0}, b={"1": 1.0}), step(a={"1": 5.0}, b={"1": 1.0, "2": 2.0})
    kept = _same_seeds([first, second])
    assert [one["values"] for one in kept] == [{"a": 1.0}, {"a": 5.0, "b": 1.5}]
    assert _same_seeds([]) == []


def test_only_names_of_earlier_suites_get_the_suite_s() -> None:
    earlier = ({"piqa"}, {"total"})
    assert told_metric("piqa/acc", "gold", earlier) == "gold.piqa/acc"
    assert told_metric("mean/total", "gold", earlier) == "mean/gold.total"
    assert told_metric("mean/piqa", "gold", earlier) == "mean/piqa"
    assert told_metric("total/acc", "gold", earlier) == "total/acc"

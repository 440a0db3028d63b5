"""Suites with the same names of tasks and means: no number stands under another suite's name, whatever is scored."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from megacode.base.errors import DataError
from megacode.cli import app
from megacode.study.grid import Cell
from megacode.study_report.document import report_document
from megacode.study_report.earlier_suites import told_metric
from megacode.study_report.journeys import _same_seeds
from megacode.study_report.latex import render_latex
from megacode.study_report.markdown import _anchor, render_markdown
from megacode.study_report.page import render
from megacode.study_report.shapes import StudyReport
from tests.study_report.conftest import TASKS, TINY_SUITE, Make, change_json, score_files
from tests.study_report.made_suites import BITS, MadeSuite, MadeTask

# Tasks, categories and means of the same names, as `to-code` and `to-code-gold` have them.
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
    document = yaml.safe_load(study.read_text())
    # Without the arm that ends there, nothing compares these scores with others.
    del document["arms"]["half"]
    study.write_text(yaml.safe_dump(document))
    assert [len(row["steps"]) for row in report_document(study)["waterfall"]] == [2]
    ends = [path for path in score_files(study, "cooldown-*") if path.stem.endswith("100")]
    assert len(ends) == 2
    for path in ends:
        change_json(path, lambda document: document["settings"].update(limit=8))
    assert report_document(study)["waterfall"] == []


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


def test_two_seeds_with_one_model_s_weights_are_refused(make: Make) -> None:
    study = make(2)
    one, other = score_files(study, "text-s*")
    weights = json.loads(one.read_text())["model"]["weights_sha256"]
    change_json(other, lambda document: document["model"].update(weights_sha256=weights))
    with pytest.raises(DataError, match="these are the same model, not two seeds"):
        report_document(study)


def test_the_terminal_says_what_a_mean_is_without(make: Make) -> None:
    study = make(2)
    first = score_files(study)[0]
    change_json(first, lambda document: document["scores"]["piqa"].update(acc=None))
    printed = CliRunner().invoke(app, ["study", "report", str(study)])
    assert printed.exit_code == 0
    assert "mean/total (without piqa): half" in printed.output
    assert "note: mean/total is a mean without piqa" in printed.output
    assert re.search(
        r"left out: piqa/acc: (base|half|cooled) has no number of it \(tiny@iter_\d+\.json\)", printed.output
    )


def test_no_two_arms_have_one_anchor_and_a_second_name_is_as_bold(small_report: StudyReport) -> None:
    assert _anchor("code+markup") != _anchor("code-markup") != _anchor("code.markup")
    rows = {line.split("]")[0]: line for line in render_markdown(small_report).splitlines() if line.startswith("| [")}
    first, second = rows["| [code-100"], rows["| [code+markup"]
    assert first.count("**") == second.count("**") == 2
    assert "Bold" in render_latex(small_report)
    bold = [line for line in render_latex(small_report).splitlines() if line.startswith(("code-100 ", "code+markup "))]
    assert [line.count(r"\textbf") for line in bold[:2]] == [1, 1]


def test_names_in_captions_and_labels_do_not_break_latex(small_report: StudyReport) -> None:
    odd = copy.deepcopy(small_report)
    odd["study"]["name"] = "a_b.c"
    for arm in odd["arms"]:
        arm["place"] = "big_one"
    text = render_latex(odd)
    assert r"\caption{Scores at big\_one;" in text
    assert r"\label{tab:a-b-c-scores-big-one}" in text


def test_what_is_shared_between_rows_is_not_called_all_that_is_shared(make: Make) -> None:
    # `cooled` goes through `half`: one run a row trains that once, too.
    report = report_document(make(1))
    tokens = report["tree"]["tokens"]
    assert tokens["tree"] == tokens["rows"] < tokens["alone"]
    html = render(report)
    assert "as many as a run a row" in html
    assert "nothing is shared" not in html

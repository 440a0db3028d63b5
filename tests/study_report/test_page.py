"""The page of a study: whole, self-contained, the same bytes again, and every number leads to its files."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from megacode.study_report.page import render
from megacode.study_report.printed import difference_text, score_text
from megacode.study_report.shapes import StudyReport
from tests.limits import HANG
from tests.study_report.example import document
from tests.study_report.pages import StrictPage

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {"results", "scores", "amount", "phases", "tree", "tasks", "reading", "others", "limits", "provenance"}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return document()


@pytest.fixture(scope="module")
def page(made: dict[str, Any]) -> StrictPage:
    return StrictPage(render(made))


def changed(made: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(made), **parts}


def test_the_page_has_every_section_and_every_chart(page: StrictPage) -> None:
    assert page.values("id") >= SECTIONS
    assert page.values("id") >= {"forest", "proportion-0-0", "proportion-0-1", "pareto-0", "waterfall", "clock-0",
                                 "tree-chart", "gain-chart"}  # fmt: skip
    inside = {value.removeprefix("#") for value in page.values("href") if value.startswith("#")}
    assert len(inside) > 10
    assert inside <= page.values("id")
    assert len([value for _, name, value in page.attributes if name == "id"]) == len(page.values("id"))


def test_the_page_is_one_file_and_asks_no_network(made: dict[str, Any]) -> None:
    html = render(made)
    assert not re.search(r"<(link|img|iframe|object)\b", html)
    assert not re.search(r"(src|href)=\"(https?:)?//", html)
    assert not re.search(r"url\(|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    assert "max-width: 760px" in html


def test_nothing_is_called_nan_or_none(page: StrictPage) -> None:
    assert not re.search(r"\b(nan|inf|None|undefined)\b", page.text)
    assert not [value for _, name, value in page.attributes if name != "title" and re.search(r"\bnan\b", value)]


def test_charts_are_told_to_those_who_do_not_see_them(page: StrictPage) -> None:
    assert page.tags["svg"] > 10
    assert page.tags["desc"] == page.tags["svg"]
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == page.tags["svg"]
    assert all(labels)
    heads = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
    assert len(heads) == page.tags["th"]


def test_the_same_document_gives_the_same_bytes_in_every_process() -> None:
    program = (
        "import hashlib; from tests.study_report.example import document\n"
        "from megacode.study_report.page import render\n"
        "print(hashlib.sha256(render(document()).encode()).hexdigest())"
    )
    seen = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG
        )
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


def test_every_score_leads_to_its_runs_seals_and_files(made: dict[str, Any], page: StrictPage) -> None:
    titles = page.values("title")
    for row in made["scores"]:
        mine = [model for model in made["models"] if model["arm"] == row["arm"]]
        assert len(mine) == 3
        # One tooltip names all runs, seals and score files behind the mean.
        assert any(
            all(m["run"] in t and m["seal"][:12] in t and m["scores"]["to-code"] in t for m in mine) for t in titles
        )
    files = [model["scores"]["to-code"] for model in made["models"]]
    assert page.values("href") >= {*files, *(file.replace(".json", ".items.jsonl") for file in files)}
    assert page.values("href") >= {model["run"] for model in made["models"]}


def test_links_are_relative_to_where_the_page_lies(made: dict[str, Any]) -> None:
    hrefs = StrictPage(render(made, Path("runs/to-code"))).values("href")
    assert "text-only-s1/eval/to-code@iter_47684.json" in hrefs
    assert not any(href.startswith(("runs/", "/")) for href in hrefs)


def test_scores_stand_in_the_table_as_in_the_document(made: dict[str, Any], page: StrictPage) -> None:
    for row in made["scores"]:
        assert f"{100 * row['value']:.1f}" in page.cells
    assert {"paper 49.0", "paper 54.9", "paper 32.9"} <= set(page.cells)


def test_what_sentences_are_about_is_said_once(small_report: StudyReport) -> None:
    page = StrictPage(render(small_report))
    assert "All of this is about these recipes (3 seeds)." in page.text
    mixed = copy.deepcopy(small_report)
    words = mixed["headlines"][0]["words"]
    mixed["headlines"][0]["words"] = words.replace("these recipes (3 seeds)", "these two models")
    page = StrictPage(render(mixed))
    assert "Unless something else is said, this is about these recipes (3 seeds)." in page.text
    assert "this is about these two models" in page.text


def test_the_page_of_real_files_says_what_the_other_files_say(small_report: StudyReport, tmp_path: Path) -> None:
    page = StrictPage(render(small_report))
    metrics = {row["metric"]: row for row in small_report["metrics"]}
    declared = {name for name, row in metrics.items() if row["family"] != "exploratory"}
    shown = [row for row in small_report["scores"] if row["metric"] in declared]
    assert len(shown) == 13 * 5
    assert {score_text(row, metrics[row["metric"]], half=False) for row in shown} <= set(page.cells)
    compared = [row for row in small_report["comparisons"] if row["metric"] in declared]
    assert len(compared) == 13 * 5
    drawn = Counter(page.text.split())
    for text, count in Counter(map(difference_text, compared)).items():
        assert drawn[text] >= 2 * count  # in the wide drawing and in the narrow one


def test_links_of_the_page_lead_to_files_that_are_there(small_report: StudyReport, small: Path) -> None:
    place = small.parent / "a page"
    hrefs = [href for href in StrictPage(render(small_report, place)).values("href") if not href.startswith("#")]
    assert len(hrefs) > 100
    assert not [href for href in hrefs if not (place / unquote(href)).resolve().exists()]


def test_headlines_come_with_the_findings_first_and_names_without_the_common_level(page: StrictPage) -> None:
    assert "In total (mean):" in page.text
    assert "All of this is about" not in page.text  # these sentences do not say what they are about
    assert page.text.index("is better than text-only by") < page.text.index("are not distinguishable (")
    assert "@470m" not in page.text.partition("study file")[0]


def test_levels_stay_in_the_names_where_there_are_several(made: dict[str, Any]) -> None:
    both = copy.deepcopy(made)
    for row in both["arms"][6:]:
        row["place"] = "2.8b"
    text = StrictPage(render(both)).text
    assert "text-only@470m" in text
    assert "at 470m and 2.8b" in text


def test_flags_of_a_run_are_on_the_page(page: StrictPage) -> None:
    assert "withheld 512 samples after a spike" in page.text
    assert "withheld 512 samples after a spike" in page.values("title")


def test_arms_that_do_not_match_are_shown_with_the_problem(page: StrictPage) -> None:
    assert "✗ not equal" in page.text
    assert "code 48,828 in place of 40,000" in page.text


def test_a_task_that_cannot_rank_data_is_marked(page: StrictPage) -> None:
    marked = [text for text in page.values("title") if "a coin toss below 1B" in text]
    assert len(marked) == 2
    assert "48 58" in page.cells


def test_tasks_stand_once_below_the_narrowest_mean(made: dict[str, Any]) -> None:
    wider = copy.deepcopy(made)
    wider["heat_map"]["shares"] += [
        {**row, "mean": "mean/total", "share": 0.017} for row in wider["heat_map"]["shares"]
    ]  # fmt: skip
    cells = StrictPage(render(wider)).cells
    assert cells.count("boolq") == 1
    assert "9.1 %" in cells
    assert "1.7 %" not in cells


def test_before_anything_is_scored_each_part_says_what_is_missing() -> None:
    made = document(scored=False)
    page = StrictPage(render(made))
    assert "0 of 33 models scored" in page.text
    assert "No two arms are scored yet: megacode study run" in page.text
    assert "No task is scored in two arms yet." in page.text
    assert "amount" not in page.values("id")
    assert {"tree-chart", "limits", "provenance"} <= page.values("id")
    assert "0 of 3 seeds trained" in page.text


@pytest.mark.parametrize("changes", [{"seeds": 1}, {"seeds": 2, "level": ""}, {"extra": 49}])
def test_few_seeds_and_many_arms_make_a_whole_page(changes: dict[str, Any]) -> None:
    made = document(**changes)
    page = StrictPage(render(made))
    assert page.values("id") >= SECTIONS
    assert not re.search(r"\bnan\b", page.text)
    arms = len(made["arms"])
    assert f"{arms} arms" in page.text
    # All arms are in the table of scores, in the forest plot and in the heat map.
    for row in made["arms"]:
        assert page.text.count(row["arm"]) > 4
    if changes.get("seeds") == 1:
        assert "differences of these models alone" in page.text


def test_one_arm_alone_makes_a_page() -> None:
    made = document()
    kept = made["arms"][:1]
    name = kept[0]["name"]
    for key in ("scores", "models", "paper", "waterfall", "loss_by_source", "forgetting", "gain_per_flop", "exposure",
                "contamination", "transfer", "transfer_by_phase"):  # fmt: skip
        made[key] = [row for row in made[key] if row["arm"] == name]
    made |= {"arms": kept, "comparisons": [], "headlines": [], "pareto": [], "match": [],
             "heat_map": {"metrics": [], "cells": [], "shares": []}}  # fmt: skip
    made["proportion"][0]["points"] = made["proportion"][0]["points"][:1]
    page = StrictPage(render(made))
    assert "1 arm at 470m" in page.text
    assert "No two arms are scored yet" in page.text


def test_a_name_that_looks_like_html_stays_a_name(made: dict[str, Any]) -> None:
    nasty = '<script>alert("x")</script>&'
    hostile = changed(made, study={**made["study"], "name": nasty}, limits=[nasty])
    html = render(hostile)
    assert "<script>alert" not in html
    assert nasty in StrictPage(html).text


def test_laws_forecasts_and_changes_of_the_study_are_shown_where_there_are_any(
    made: dict[str, Any], page: StrictPage
) -> None:
    assert "law" not in page.values("id")
    assert "What changed in the study" not in page.text
    names = [row["name"] for row in made["arms"][:3]]
    left_out = dict.fromkeys(names, 0.02)
    fit = {"left_out_r2": 0.93, "residuals": dict.fromkeys(names, 0.01), "left_out_residuals": left_out}
    proposal = {
        "kind": "law", "arm": None, "blend": {"text": 0.7, "code": 0.3}, "passes": {"text": 0.5, "code": 1.5},
        "predicted": {"mean/nl": {"value": 0.31, "low": 0.30, "high": 0.32}}, "above_cap": ["code"],
        "nearest": {"arm": names[1], "distance": 0.1}, "block": "arms: {next-law: [next-law]}",
    }  # fmt: skip
    law = {
        "points": [{"name": name, "scores": {"mean/nl": 0.30}} for name in names],
        "targets": [{"metric": "mean/nl", "higher_is_better": True, "law": fit},
                    {"metric": "mean/code", "higher_is_better": True, "law": None}],
        "refusals": [{"reason": "too few blends", "what": "6 blends of 4 sources are too few", "fix": "train more"}],
        "proposals": [proposal],
    }  # fmt: skip
    forecasts = [
        {"arm": names[0], "metric": "mean/nl", "value": 0.31, "low": 0.30, "high": 0.32, "measured": measured,
         "inside": inside, "registered": inside}
        for measured, inside in ((0.315, True), (0.4, False), (None, None))
    ]  # fmt: skip
    history = {"versions": 2, "changes": [{"key": "compare.margin", "before": "0.5", "now": "1.0"}]}
    whole = StrictPage(render(changed(made, law=law, forecasts=forecasts, history=history)))
    assert {"law", "law-0"} <= whole.values("id")
    assert "law-1" not in whole.values("id")
    for words in ("left out, R² = 0.930", "6 blends of 4 sources are too few. Train more.", "30.0 % code (1.50 passes)",
                  "above the cap: code", "arms: {next-law: [next-law]}", "10.0 % of the tokens apart",
                  "31.0 (30.0 .. 32.0)", "afterwards, so it is no test", "compare.margin",
                  # Residuals are of losses, so a score is its own value plus them.
                  "text-only: measured 30.0, fitted 31.0, left out 32.0"):  # fmt: skip
        assert words in whole.text
    assert [cell for cell in whole.cells if cell in ("inside", "outside")] == ["inside", "outside"]


def test_bits_per_byte_are_better_where_they_are_lower(made: dict[str, Any]) -> None:
    bits = copy.deepcopy(made)
    for row in bits["metrics"]:
        if row["metric"] == "boolq/acc":
            row |= {"unit": "bits per byte", "higher_is_better": False, "title": "boolq, bits per byte"}
    for cell in bits["heat_map"]["cells"]:
        if cell["metric"] == "boolq/acc":
            cell |= {"difference": -0.3, "verdict": "better", "distinguishable": True}
    page = StrictPage(render(bits))
    assert page.text.count("-0.300 ▲") + page.text.count("-0.300") >= 10
    shades = [value for tag, name, value in page.attributes if (tag, name) == ("td", "class") and "h5" in value]
    assert len([value for value in shades if value.startswith("good-cell")]) >= 10

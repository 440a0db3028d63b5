"""Gains before and after the same further training: what is compared, its intervals, and the share that is left."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from megacode.statistics.student import t_quantile
from megacode.study.schema import Study
from megacode.study_report.document import report_document
from megacode.study_report.long_form import render_csv
from megacode.study_report.markdown import render_markdown
from megacode.study_report.page import render
from megacode.study_report.survival import earlier_places
from tests.study_report.conftest import Make, score_files
from tests.study_report.made_suites import MadeSuite, MadeTask

TUNED = {"tuning": {"before": {}, "after": {"then": ["cooldown"]}}}
ARMS = {"base": ["text"], "half": ["balanced"]}
SUITE = MadeSuite("tiny", {"piqa": MadeTask("acc", 4000, 0.5)}, {"nl": {"piqa": "acc"}}, {"total": ["nl"]})


def halved(cell, task: str) -> float:
    """Return a gain of 20 points before, and of 10 after."""
    gain = 0.2 if cell.levels["tuning"] == "before" else 0.1
    return gain if cell.arm == "half" else 0.0


def study_of(make: Make, seeds: int, **recipe) -> Path:
    recipe = {"suites": [SUITE], "effect": halved, "seed_sd": 0.001, **recipe}
    return make(seeds, recipe, factors=TUNED, arms=ARMS)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_gain_of_which_half_is_left_is_found(seeds, make: Make) -> None:
    document = report_document(study_of(make, seeds))
    row = next(row for row in document["survival"] if row["metric"] == "mean/total")
    assert {key: row[key] for key in ("arm", "baseline", "place_before", "place_after", "phases")} == {
        "arm": "half", "baseline": "base", "place_before": "before", "place_after": "after", "phases": ["cooldown"],
    }  # fmt: skip
    assert row["before"]["low"] < 0.2 < row["before"]["high"]
    assert row["after"]["low"] < 0.1 < row["after"]["high"]
    assert row["change"]["low"] < -0.1 < row["change"]["high"] < 0
    assert row["ratio"]["low"] < 0.5 < row["ratio"]["high"]
    assert row["ratio"]["value"] == pytest.approx(row["after"]["difference"] / row["before"]["difference"])
    assert row["ratio"]["high"] - row["ratio"]["low"] < 0.8
    # The same differences as in the comparisons of each level.
    for place in ("before", "after"):
        (other,) = [one for one in document["comparisons"] if one["place"] == place and one["metric"] == "mean/total"]
        assert row[place]["difference"] == pytest.approx(other["difference"])
        if seeds == 1:
            assert row[place]["low"] == pytest.approx(other["low"])


def test_the_interval_of_the_change_is_that_of_paired_items(make: Make) -> None:
    file = study_of(make, 1)
    (row,) = [row for row in report_document(file)["survival"] if row["metric"] == "piqa/acc"]
    answers = {}
    for path in score_files(file):
        lines = [json.loads(line) for line in path.with_suffix(".items.jsonl").read_text().splitlines()]
        iteration = json.loads(path.read_text())["model"]["megacode"]["consumed_samples"]
        arm = "half" if "balanced" in (path.parents[1] / "run.yaml").read_text() else "base"
        answers[arm, iteration] = np.array([line["acc"] for line in sorted(lines, key=lambda line: line["item"])])
    gains = []
    for place in (0, 1):  # arms have clocks of their own: before, and after
        half, base = (
            answers[arm, sorted(clock for one, clock in answers if one == arm)[place]] for arm in ("half", "base")
        )
        gains.append(half - base)
    items = gains[1] - gains[0]
    half = t_quantile(0.975, len(items) - 1) * items.std(ddof=1) / np.sqrt(len(items))
    assert row["change"]["difference"] == pytest.approx(items.mean())
    assert row["change"]["high"] - row["change"]["difference"] == pytest.approx(half, rel=1e-3)


def test_without_a_gain_there_is_no_share_of_it(make: Make) -> None:
    rows = report_document(study_of(make, 2, effect=lambda cell, task: 0.0))["survival"]
    assert {row["metric"] for row in rows} >= {"piqa/acc", "mean/total"}
    assert {row["ratio"] is None for row in rows} == {True}
    assert {row["change"]["low"] < 0 < row["change"]["high"] for row in rows} == {True}


def test_all_files_of_the_report_show_it_and_reports_without_it_do_not(make: Make, small_report) -> None:
    document = report_document(study_of(make, 2))
    page, text = render(document), render_markdown(document)
    row = next(row for row in document["survival"] if row["metric"] == "mean/total")
    said = f"{100 * row['ratio']['value']:.0f} % ("
    assert said in page
    assert said in text
    assert "The gain that survives cooldown" in page
    assert "## Do gains last?" in text
    assert small_report["survival"] == []
    without = render(small_report) + render_markdown(small_report)
    assert "survives" not in without
    assert "Do gains last?" not in without


def test_the_csv_has_each_change_and_the_share_that_is_left(make: Make) -> None:
    document = report_document(study_of(make, 1))
    rows = [row for row in csv.DictReader(io.StringIO(render_csv(document))) if row["kind"] in ("change", "kept")]
    assert len(rows) == sum(2 if row["ratio"] else 1 for row in document["survival"])
    gain = next(row for row in document["survival"] if row["metric"] == "piqa/acc")
    change, kept = (row for row in rows if (row["task"], row["metric"]) == ("piqa", "acc"))
    assert float(change["value"]) == gain["change"]["difference"]
    assert [float(kept[key]) for key in ("value", "low", "high")] == [gain["ratio"][key] for key in gain["ratio"]]
    pairs = {(one["arm"], one["baseline"]) for one in document["comparisons"] if one["place"] == "after"}
    assert {(row["arm"], row["baseline"]) for row in rows} <= pairs


def test_models_that_are_not_scored_after_are_left_out(make: Make) -> None:
    file = study_of(make, 1, scored=lambda cell, suite: cell.levels["tuning"] == "before")
    assert report_document(file)["survival"] == []


def test_before_is_the_level_without_further_phases() -> None:
    factors = {
        "scale": {"small": {}, "large": {}},
        "tuning": {"plain": {}, "chat": {"then": ["c"]}, "both": {"then": ["c", "d"]}},
    }
    study = Study.model_validate({"phases": {"c": {}, "d": {}}, "arms": {"a": ["c"]}, "baseline": "a",
                                  "factors": factors})  # fmt: skip
    assert list(earlier_places(study, ("large", "both"))) == [(("large", "plain"), ["c", "d"])]
    assert list(earlier_places(study, ("large", "plain"))) == []


def test_without_a_level_before_the_report_says_why_nothing_is_compared(make: Make) -> None:
    tuned = {"tuning": {"short": {"then": ["cooldown"]}, "long": {"then": ["cooldown", "cooldown"]}}}
    document = report_document(make(1, {"suites": [SUITE]}, factors=tuned, arms=ARMS))
    assert document["survival"] == []
    (said,) = [line for line in document["missing"] if "gains last" in line]
    assert "every level of tuning adds phases" in said

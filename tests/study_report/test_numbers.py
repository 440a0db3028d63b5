"""The numbers of a report: planted effects come out, all files say the same, and each number has a place of origin."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacode.base.files import to_json
from megacode.statistics.arms import read_arms
from megacode.statistics.comparing import ComparisonDesign, compare
from megacode.study_report.document import report_document
from megacode.study_report.latex import render_latex
from megacode.study_report.long_form import render_csv
from megacode.study_report.markdown import render_markdown
from megacode.study_report.shapes import StudyReport
from tests.limits import HANG
from tests.study_report.conftest import TINY_SUITE, Make, score_files

SHAPE = {
    "arm", "baseline", "metric", "difference", "low", "high", "simultaneous_low", "simultaneous_high",
    "degrees_of_freedom", "seeds", "items", "distinguishable", "relative",
}  # fmt: skip


def found(report: StudyReport, arm: str, metric: str, baseline: str = "base") -> dict[str, Any]:
    (row,) = [
        row for row in report["comparisons"]
        if (row["arm"], row["metric"], row["baseline"]) == (arm, metric, baseline)
    ]  # fmt: skip
    return dict(row)


def test_planted_effects_reach_the_document(make: Make) -> None:
    effect = {"half": 0.0, "cooled": 0.25, "base": 0.0}
    study = make(3, {"effect": lambda cell, task: effect[cell.arm] if task == "piqa" else 0.0, "seed_sd": 0.0})
    report = report_document(study)
    gain = found(report, "cooled", "piqa/acc")
    assert gain["low"] < 0.25 < gain["high"]
    assert (gain["verdict"], gain["distinguishable"], gain["about"]) == ("better", True, "recipes")
    # A quarter of it: piqa is one of two tasks of one of two categories.
    total = found(report, "cooled", "mean/total")
    assert total["simultaneous_low"] < 0.0625 < total["simultaneous_high"]
    assert total["family"] == "primary"
    for metric in ("piqa/acc", "mean/total", "humaneval/pass_at_1"):
        none = found(report, "half", metric)
        assert not none["distinguishable"]
        assert none["verdict"] == ""
        assert "not distinguishable" in none["words"]


def test_a_comparison_is_that_of_compare_on_the_same_files(make: Make) -> None:
    study = make(2, arms={"base": ["text"], "half": ["balanced"]})
    report = report_document(study)
    words = [
        f"{arm}={','.join(model['scores']['tiny'] for model in report['models'] if model['arm'] == arm)}"
        for arm in ("base", "half")
    ]
    arms = read_arms(words)
    again = compare(arms, ComparisonDesign("base", primary=["mean/total"], key="megacode study tiny "))
    assert len(again["comparisons"]) == len(report["comparisons"]) == 6
    for ours, theirs in zip(report["comparisons"], again["comparisons"], strict=True):
        assert set(ours) >= SHAPE
        assert {key: ours[key] for key in theirs} == theirs  # type: ignore[literal-required]


def test_one_seed_speaks_of_models_and_of_what_seeds_could_do(make: Make) -> None:
    report = report_document(make(1, compare={"primary": ["mean/total"], "seed_sd": 0.5}))
    for row in report["comparisons"]:
        assert row["about"] == "models"
        assert "these two models" in row["words"]
        assert "these recipes" not in row["words"]
        assert row["seeds_could_move_by"] == pytest.approx(2 * np.sqrt(2) * 0.005)
    assert any(line.startswith("One seed") for line in report["limits"])
    assert len(report["comparisons"]) == 12


def test_a_declared_pair_and_the_margin_are_honoured(make: Make) -> None:
    declared = {"primary": ["mean/total"], "margin": "30 points", "pairs": [["cooled", "half"]]}
    report = report_document(make(2, compare=declared))
    pair = found(report, "cooled", "mean/total", "half")
    assert pair["declared_pair"]
    assert (pair["within_margin"], pair["verdict"]) == (True, "equal")
    assert "equal within the margin" in pair["words"]
    # The pair is one more of the family, so its corrected interval is wider than its own.
    assert pair["simultaneous_high"] - pair["simultaneous_low"] > pair["high"] - pair["low"]
    assert [row["baseline"] for row in report["headlines"]] == ["base", "base", "half"]
    direct = np.mean([_score(report, "cooled", s) - _score(report, "half", s) for s in (1, 2)])
    assert pair["difference"] == pytest.approx(direct)


def _score(report: StudyReport, arm: str, seed: int) -> float:
    (model,) = [one for one in report["models"] if (one["arm"], one["seed"]) == (arm, seed)]
    return float(json.loads(Path(model["scores"]["tiny"]).read_text())["means"]["total"]["score"])


def test_scores_are_those_of_the_score_files(small_report: StudyReport) -> None:
    files = {(model["arm"], str(model["seed"])): model["scores"] for model in small_report["models"]}
    checked = 0
    for row in small_report["scores"]:
        suite = next(metric["suite"] for metric in small_report["metrics"] if metric["metric"] == row["metric"])
        task, _, name = row["metric"].partition("/")
        for seed, value in row["by_seed"].items():
            document = json.loads(Path(files[row["arm"], seed][suite]).read_text())
            given = document["means"][name] if task == "mean" else document["scores"][task]
            assert value == pytest.approx(given["score"] if task == "mean" else given[name])
            error = given["stderr"] if task == "mean" else given[f"{name}_stderr"]
            if task not in ("mean", "boolq", "quac"):  # whose items share passages, which a score file's error ignores
                assert row["errors_by_seed"][seed] == pytest.approx(error)
            checked += 1
    assert checked == 13 * 3 * len(small_report["metrics"])


def test_the_csv_holds_every_number_of_the_document(small_report: StudyReport) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(small_report))))
    own = {(r["kind"], r["arm"], r["baseline"], r["seed"], f"{r['task']}/{r['metric']}"): r for r in rows}
    assert len(own) == len(rows)
    for row in small_report["scores"]:
        mean = own["mean", row["arm"], "", "", row["metric"]]
        assert (float(mean["value"]), float(mean["se"])) == (row["value"], row["standard_error"])
        for seed, value in row["by_seed"].items():
            assert float(own["score", row["arm"], "", seed, row["metric"]]["value"]) == value
    for one in small_report["comparisons"]:
        line = own["difference", one["arm"], one["baseline"], "", one["metric"]]
        assert float(line["value"]) == one["difference"]
        assert float(line["low"]) == one["simultaneous_low"]
        assert (float(line["p"]), float(line["adjusted_p"])) == (one["p"], one["adjusted_p"])
        assert (float(line["df"]), line["family"]) == (one["degrees_of_freedom"], one["family"])
    assert len(rows) == 4 * len(small_report["scores"]) + len(small_report["comparisons"])


def cells(text: str, split: str) -> list[list[str]]:
    """Return the cells of a table's lines, without marks of links and bold face."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("**", "")
    plain = re.sub(r"\\textbf\{([^}]*)\}", r"\1", plain).replace(r"$\pm$", "±").replace(r"\%", "%").replace(r"\_", "_")
    return [
        [cell.strip(" \\") for cell in line.strip(" |").split(split)] for line in plain.splitlines() if split in line
    ]


@pytest.mark.parametrize("kind", ["markdown", "latex"])
def test_markdown_and_latex_show_the_numbers_of_the_document(small_report: StudyReport, kind: str) -> None:
    text, split = (render_markdown(small_report), " | ") if kind == "markdown" else (render_latex(small_report), " & ")
    rows = cells(text, split)
    columns = [row for row in small_report["metrics"] if row["metric"].startswith("mean/")]
    checked = 0
    for arm in (arm for arm in small_report["arms"]):
        line = next(row for row in rows if row[0] == arm["name"])
        for metric, cell in zip(columns, line[2:], strict=True):
            (score,) = [
                s for s in small_report["scores"]
                if (s["arm"], s["metric"]) == (arm["same_as"] or arm["name"], metric["metric"])
            ]  # fmt: skip
            value, half = cell.split(" ± ")
            shown(value, score["value"], metric["unit"])
            shown(half, (score["high"] - score["low"]) / 2, metric["unit"])
            checked += 1
    for one in (c for c in small_report["comparisons"] if c["family"] != "exploratory"):
        (line,) = [row for row in rows if row[:3] == [one["metric"], one["arm"], one["baseline"]] and ".." in row[4]]
        shown(line[3], one["difference"], one["unit"])
        low, high = line[4].split(" .. ")
        shown(low, one["simultaneous_low"], one["unit"])
        shown(high, one["simultaneous_high"], one["unit"])
        checked += 1
    assert checked == 14 * 6 + 13 * 5
    assert f"is half of the 95 {'%' if kind == 'markdown' else chr(92) + '%'} interval" in text


def shown(text: str, number: float | None, unit: str) -> None:
    """Check that a printed number is a number rounded to its last digit."""
    assert number is not None
    digits = len(text.partition(".")[2])
    assert abs(float(text) - number * (100 if unit == "points" else 1)) <= 0.5001 * 10**-digits


def test_every_number_leads_to_a_run_a_seal_and_a_score_file(small_report: StudyReport) -> None:
    assert len(small_report["provenance"]) == len(small_report["models"]) == 39
    for model in small_report["models"]:
        document = json.loads((Path(str(model["checkpoint"])) / "megacode.json").read_text())
        assert document["seal"] == model["seal"]
        assert set(model["scores"]) == {"to-code", "heldout"}
        for path in model["scores"].values():
            assert json.loads(Path(path).read_text())["model"]["megacode"]["checkpoint_seal"] == model["seal"]
    for row in small_report["comparisons"]:
        assert len(row["models"]) == 6
        assert all(small_report["provenance"][name]["scores"] for name in row["models"])
    for line in csv.DictReader(io.StringIO(render_csv(small_report))):
        assert all(Path(file).is_file() for file in line["scores"].split(";"))
        assert line["run"]
        assert all(len(seal) == 64 for seal in line["seal"].split(";"))
    markdown = render_markdown(small_report)
    anchors, links = set(re.findall(r'id="([^"]*)"', markdown)), set(re.findall(r"\(#([^)]*)\)", markdown))
    assert links == anchors
    assert len(anchors) == 13
    seals = {model["seal"] for model in small_report["models"]}
    assert seals == set(re.findall(r"seal ([0-9a-f]{64})", render_latex(small_report)))


def test_a_second_report_has_the_same_bytes_whatever_the_order_of_hashes(make: Make) -> None:
    study = make(2)
    out = study.parent / "runs" / "report"
    texts = []
    for key in ("1", "2"):
        command = [sys.executable, "-m", "megacode.cli", "study", "report", str(study)]
        environment = {**os.environ, "PYTHONHASHSEED": key}
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        texts.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert set(texts[0]) == {"report.html", "report.md", "report.csv", "report.tex"}
    assert texts[0] == texts[1]


def test_the_order_of_items_changes_nothing(make: Make) -> None:
    study = make(2)
    before = to_json(report_document(study))
    changed = 0
    for number, file in enumerate(score_files(study)):
        items = file.with_suffix(".items.jsonl")
        lines = items.read_text().splitlines(keepends=True)
        random.Random(number).shuffle(lines)
        items.write_text("".join(lines))
        changed += 1
    assert changed == 6
    assert to_json(report_document(study)) == before


def test_a_task_that_one_arm_lacks_is_left_out_of_all_and_said(make: Make) -> None:
    def without(cell: Any, suite: str, document: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        if cell.arm == "half" and cell.seed == 2:
            del document["scores"]["boolq"], document["tasks"]["boolq"]
            document["left_out"] = {"boolq": "it could not be loaded"}
            lines[:] = [line for line in lines if line["task"] != "boolq"]

    whole = report_document(make(2))
    report = report_document(make(2, {"change": without}))
    assert "half has no scores of it" in report["left_out"]["boolq"]
    assert not [row for row in report["comparisons"] if row["metric"].startswith("boolq/")]
    (total,) = [row for row in report["metrics"] if row["metric"] == "mean/total"]
    assert total["missing"] == ["boolq"]
    assert "mean/total is a mean without boolq" in report["notes"]
    # The other arms' means are without it, too: nothing is compared that was not asked of both.
    piqa = [found(whole, "cooled", metric)["difference"] for metric in ("piqa/acc", "humaneval/pass_at_1")]
    assert found(report, "cooled", "mean/total")["difference"] == pytest.approx(sum(piqa) / 2)


def test_shares_of_variance_are_those_of_the_mean(small_report: StudyReport) -> None:
    shares = small_report["heat_map"]["shares"]
    means = {row["mean"] for row in shares}
    assert means == {f"mean/{name}" for name in ("reasoning", "knowledge", "code", "nl", "total", "bits_per_byte")}
    for mean in means:
        assert sum(row["share"] for row in shares if row["mean"] == mean) == pytest.approx(1)
    # The two smallest tasks of eleven hold most of the variance of the mean.
    noisy = sum(row["share"] for row in shares if row["mean"] == "mean/reasoning" and row["metric"][:2] in ("cb", "co"))
    assert noisy > 0.4
    assert len(TINY_SUITE.tasks) == 3

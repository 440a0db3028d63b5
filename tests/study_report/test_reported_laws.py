"""A report's laws and forecasts: those of `study next`, from the same scores, and the same in every file."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.statistics.items import ItemsReader
from megacode.study.grid import Cell
from megacode.study_report.document import report_document
from megacode.study_report.latex import render_latex
from megacode.study_report.long_form import render_csv
from megacode.study_report.markdown import render_markdown
from megacode.study_report.next_arms import next_mixture
from megacode.study_report.next_target import Wanted
from megacode.study_report.page import render
from megacode.study_report.shapes import StudyReport
from tests.study_report.made_suites import BITS, MadeSuite, MadeTask, Recipe
from tests.study_report.mixtures import blends_of_two, planted, study_of
from tests.study_report.pages import StrictPage
from tests.study_report.synthetic import make_study

CODE = f"code/{BITS}"
TASKS = {name: MadeTask(BITS, 20, 0.0, spread=0.01) for name in ("text", "code")}
HELDOUT = MadeSuite("heldout", TASKS, {"heldout": dict.fromkeys(TASKS, BITS)})
FORECASTS = {
    "mix-2": {CODE: {"value": 1.2, "low": 1.1, "high": 1.4}},
    "mix-3": {CODE: {"value": 1.2, "low": 1.19, "high": 1.21}},
}


def effect(cell: Cell, task: str) -> float:
    """Return the planted loss of the blend of an arm's last phase, a little lower at a mean of checkpoints."""
    phase = cell.plan.schedule.phases[-1]
    blend = {name: count / phase.samples for name, count in phase.counts.items()}
    return planted(blend)[task] - (0.1 if cell.merging else 0.0)


def blends(shares: Sequence[float] = (0, 0.25, 0.5, 0.75, 0.9, 1), **changes: Any) -> dict[str, Any]:
    """Return a study of one arm for each blend, with two forecasts."""
    study = study_of(blends_of_two(shares), **changes)
    for name, forecast in FORECASTS.items():
        if name in study["arms"]:
            study["arms"][name] = {"phases": [name], "forecast": forecast}
    return study


def made(folder: Path, study: Mapping[str, Any], **recipe: Any) -> Path:
    settings = {"effect": effect, "seed_sd": 0.002, **recipe}
    return make_study(folder / "blends.yaml", study, Recipe([HELDOUT], **settings))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a scored study."""
    return made(tmp_path_factory.mktemp("blends"), blends())


@pytest.fixture(scope="module")
def report(file: Path) -> StudyReport:
    """Its report."""
    return report_document(file)


def test_the_law_is_what_study_next_says(file: Path, report: StudyReport) -> None:
    assert report["law"] == next_mixture(file)
    assert report["law"]["refusals"] == []
    law, *_ = report["law"]["proposals"]
    assert law["kind"] == "law"
    assert law["blend"]["code"] == pytest.approx(0.6, abs=0.05)
    assert report["forecasts"] == report["law"]["forecasts"]
    assert [(row["arm"], row["inside"]) for row in report["forecasts"]] == [("mix-2", True), ("mix-3", False)]
    means = {(row["arm"], row["metric"]): row["value"] for row in report["scores"]}
    for row in report["forecasts"]:
        assert row["measured"] == pytest.approx(means[row["arm"], row["metric"]])


def shows_forecast(text: str) -> bool:
    """Return whether a text shows the forecast of `mix-2`, with as many decimals as its metric has."""
    return re.search(r"1\.20+ \(1\.10+ \.\. 1\.40+\)", text) is not None


def test_every_file_shows_law_and_forecasts_as_far_as_it_can(report: StudyReport) -> None:
    page, markdown, latex = StrictPage(render(report)).text, render_markdown(report), render_latex(report)
    for text in (page, markdown):
        assert "by the law" in text
        assert "next-law" in text
        assert "UniMax" in text
    assert "| law of | left-out R² |" in markdown
    (block,) = (part.partition("```")[0] for part in markdown.split("To paste, by the law:\n\n```yaml\n")[1:])
    assert list(yaml.safe_load(block)["arms"]) == ["next-law"]
    for text in (page, markdown, latex):
        assert shows_forecast(text)
        assert text.count("outside") == 1
    rows = [row for row in csv.DictReader(io.StringIO(render_csv(report))) if row["kind"] == "forecast"]
    assert [(row["arm"], row["value"], row["low"], row["high"]) for row in rows] == [
        ("mix-2", "1.2", "1.1", "1.4"), ("mix-3", "1.2", "1.19", "1.21"),
    ]  # fmt: skip
    assert all(len(row["scores"].split(";")) == 2 for row in rows)


def test_each_items_file_is_read_once_for_a_report(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[Path] = Counter()
    whole = ItemsReader.read

    def counted(self: ItemsReader, path: Path) -> Any:
        read[path] += 1
        return whole(self, path)

    monkeypatch.setattr(ItemsReader, "read", counted)
    report = report_document(file)
    assert (len(read), set(read.values())) == (12, {1})
    assert report["law"] is not None
    assert len(report["law"]["points"]) == 6


def test_a_study_without_scores_has_forecasts_and_no_law(tmp_path: Path) -> None:
    report = report_document(made(tmp_path, blends(), scored=lambda cell, suite: False))
    assert report["law"] is None
    assert [(row["arm"], row["measured"], row["inside"]) for row in report["forecasts"]] == [
        ("mix-2", None, None), ("mix-3", None, None),
    ]  # fmt: skip
    for text in (render(report), render_markdown(report), render_latex(report)):
        assert shows_forecast(text)
    rows = [row for row in csv.DictReader(io.StringIO(render_csv(report))) if row["kind"] == "forecast"]
    assert [row["arm"] for row in rows] == ["mix-2", "mix-3"]


def test_where_no_law_can_be_fitted_the_reasons_stand(tmp_path: Path) -> None:
    few = report_document(made(tmp_path / "few", blends((0, 0.5, 1))))
    assert few["law"] is not None
    assert [one["reason"] for one in few["law"]["refusals"]] == ["too few blends"]
    # A metric must be named for a law; the rest of a report needs none.
    unnamed = report_document(made(tmp_path / "unnamed", blends(compare={})))
    assert unnamed["law"] is not None
    (refusal,) = unnamed["law"]["refusals"]
    assert (set(unnamed["law"]), set(refusal)) == ({"refusals"}, {"reason", "what", "fix"})
    for report, said in ((few, "distinct blends of 2 sources that are scored: 3"), (unnamed, "no metric is named")):
        assert len(report["forecasts"]) == 1 + (report is unnamed)
        assert said in render_markdown(report)
        assert said in StrictPage(render(report)).text


def test_laws_outlive_their_checkpoints(tmp_path: Path) -> None:
    study = made(tmp_path, blends())
    before = next_mixture(study)
    deleted = [*(tmp_path / "runs").glob("*/checkpoints")]
    assert len(deleted) == 12
    for place in deleted:
        shutil.rmtree(place)
    assert next_mixture(study) == before
    assert report_document(study)["law"] == before


def merged_study(**changes: Any) -> dict[str, Any]:
    """Return the study of blends with a merged arm for each, and forecasts of some of them."""
    study = blends(**changes)
    study["set"]["checkpoint"] = {"keep_every": "25 iterations", "keep_last": 2}
    for number in range(6):
        arm = {"phases": [f"mix-{number}"], "anneal": {"merge": {"decay": "linear", "over": "40 iterations"}}}
        study["arms"][f"mean-{number}"] = arm
    study["arms"]["mean-2"]["forecast"] = {CODE: {"value": 1.15, "low": 1.0, "high": 1.2}}
    return study


def test_a_merged_arm_has_its_checkpoint_and_scores_in_the_report(tmp_path: Path) -> None:
    study = made(tmp_path, merged_study())
    report = report_document(study)
    models = {(model["arm"], model["seed"]): model for model in report["models"]}
    trunk, mean = models["mix-2", 1], models["mean-2", 1]
    assert (mean["state"], mean["iteration"]) == ("scored", 100)
    assert Path(str(mean["run"])).name.startswith("merged-s1-")
    assert mean["seal"] != trunk["seal"]
    scores = {(row["arm"], row["metric"]): row["value"] for row in report["scores"]}
    assert scores["mean-2", CODE] == pytest.approx(scores["mix-2", CODE] - 0.1, abs=0.02)
    (fall,) = [row for row in report["waterfall"] if row["arm"] == "mean-2"]
    assert [step["phase"] for step in fall["steps"]] == ["mix-2", "merged"]
    row = next(row for row in report["forecasts"] if row["arm"] == "mean-2")
    assert row["measured"] == pytest.approx(scores["mean-2", CODE])
    # Means are points of a law of their own.
    assert report["law"] is not None
    assert [point["name"] for point in report["law"]["points"]] == [f"mix-{number}" for number in range(6)]
    assert report["law"]["left_out"] == {f"mean-{number}": "another merge" for number in range(6)}
    own = next_mixture(study, Wanted(like="mean-0"))
    assert [point["name"] for point in own["points"]] == [f"mean-{number}" for number in range(6)]
    assert own["points"][2]["scores"][CODE] == pytest.approx(scores["mean-2", CODE])
    arm = yaml.safe_load(own["proposals"][0]["block"])["arms"]["next-law"]
    assert arm["anneal"] == {"merge": {"decay": "linear", "over": "40 iterations"}}


def test_scores_of_a_mean_outlive_its_checkpoint_and_are_not_the_trunk_s(tmp_path: Path) -> None:
    study = made(tmp_path, merged_study())
    before = report_document(study)
    deleted = [*(tmp_path / "runs").glob("merged-*/checkpoints")]
    assert len(deleted) == 12
    for place in deleted:
        shutil.rmtree(place)
    report = report_document(study)
    assert report["scores"] == before["scores"]
    # Nothing tells what a mean was made of once its parts are gone, too; so it counts as no state at all.
    for place in (tmp_path / "runs").glob("mix-2-*/checkpoints"):
        shutil.rmtree(place)
    states = {model["arm"]: model["state"] for model in report_document(study)["models"]}
    assert (states["mix-2"], states["mean-2"], states["mean-1"]) == ("scored", "not trained", "scored")


@pytest.mark.parametrize("vary", ["data", "weights"])
def test_seeds_of_data_or_of_weights_alone_are_points_of_one_blend(tmp_path: Path, vary: str) -> None:
    report = report_document(made(tmp_path, blends(vary=vary)))
    assert report["law"] is not None
    assert [set(point["seeds"].values()) for point in report["law"]["points"]] == [{2}] * 6
    assert report["law"]["refusals"] == []


def test_the_law_of_a_study_with_levels_is_that_of_one_of_them(tmp_path: Path) -> None:
    factors = {"scale": {"small": {}, "large": {"set": {"model.hidden_size": 128}, "only": ["mix-0", "mix-2"]}}}
    report = report_document(made(tmp_path, blends(factors=factors)))
    law = report["law"]
    assert law is not None
    assert (law["levels"], law["refusals"]) == ({"scale": "small"}, [])
    assert [point["name"] for point in law["points"]] == [f"mix-{number}@small" for number in range(6)]
    assert [row["arm"] for row in report["forecasts"]] == ["mix-2@small", "mix-2@large", "mix-3@small"]
    assert all(row["measured"] is not None for row in report["forecasts"])
    assert "mix-2@large" in render_markdown(report)
    assert {"law", "law-0"} <= StrictPage(render(report)).values("id")

"""A study's report as CSV in long form: one row a score, a mean over seeds, a difference or a forecast."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from megacode.study_report.printed import ReportRows
from megacode.study_report.shapes import ModelRow, ScoreRow, StudyReport

# Earlier reports begin with the first of these; what comes later is added behind them.
MARK = "kind,arm,baseline,seed,task,metric,value,se,low,high"
COLUMNS = (*MARK.split(","), "df", "p", "adjusted_p", "family", "n", "run", "seal", "scores")
Cells = dict[str, object]


def render_csv(document: StudyReport) -> str:
    """Return a report as CSV; numbers have all their digits, in the scores' own unit (shares of 1).

    `kind` is `score` (of one model), `mean` (of an arm over its seeds), `difference` (arm minus baseline, with the
    interval and the p-value that are corrected within its family), `change` (of a difference through phases that all
    arms were continued with) and `kept` (the share of it that was left), or `forecast` (of the study file, with its
    interval). `run`, `seal` and `scores` list all models of a row, split by `;`.
    """
    file = io.StringIO()
    # A column that a kind of row does not have is empty.
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(document))
    return file.getvalue()


def _rows(document: StudyReport) -> Iterator[Cells]:
    lookup = ReportRows(document)
    models = {arm["name"]: lookup.models(arm["name"]) for arm in document["arms"]}
    suites = {metric["metric"]: metric["suite"] for metric in document["metrics"]}
    for row in document["scores"]:
        own = [model for model in models[row["arm"]] if str(model["seed"]) in row["by_seed"]]
        yield from _scores(row, own, suites[row["metric"]])
    for one in document["comparisons"]:
        both = [document["provenance"][name] for name in one["models"]]
        yield {
            "kind": "difference", "arm": one["arm"], "baseline": one["baseline"], **_named(one["metric"]),
            "value": one["difference"], "se": one["standard_error"], "low": one["simultaneous_low"],
            "high": one["simultaneous_high"], "df": one["degrees_of_freedom"], "p": one["p"],
            "adjusted_p": one["adjusted_p"], "family": one["family"], "n": one["items"],
            **_places(both, suites[one["metric"]]),
        }  # fmt: skip
    for gain in document["survival"]:
        yield from _survival(gain)
    for forecast in document["forecasts"]:
        # A forecast is made before its arm is trained, so it may lead nowhere yet.
        own = [model for model in models[forecast["arm"]] if model["run"] is not None]
        yield {
            "kind": "forecast", "arm": forecast["arm"], **_named(forecast["metric"]), "value": forecast["value"],
            "low": forecast["low"], "high": forecast["high"], **_places(own, suites.get(forecast["metric"], "")),
        }  # fmt: skip


def _scores(row: ScoreRow, models: Sequence[ModelRow], suite: str) -> Iterator[Cells]:
    """Yield the score of each model of an arm in a metric, and their mean."""
    common = {"arm": row["arm"], **_named(row["metric"]), "n": row["items"]}
    for seed, value in row["by_seed"].items():
        # JSON's keys are text, so seeds are compared as text.
        own = [model for model in models if str(model["seed"]) == seed]
        figures = {"seed": seed, "value": value, "se": row["errors_by_seed"][seed]}
        yield {"kind": "score", **common, **figures, **_places(own, suite)}
    figures = {"value": row["value"], "se": row["standard_error"], "low": row["low"], "high": row["high"]}
    yield {"kind": "mean", **common, **figures, **_places(models, suite)}


def _survival(gain: dict[str, Any]) -> Iterator[Cells]:
    """Yield how a difference changed through further phases and, where one can be given, the share that was left."""
    arm, baseline = (f"{gain[key]}@{gain['place_after']}" for key in ("arm", "baseline"))
    common = {"arm": arm, "baseline": baseline, **_named(gain["metric"])}
    change, kept = gain["change"], gain["ratio"]
    yield {"kind": "change", **common, "value": change["difference"], "low": change["low"], "high": change["high"]}
    if kept is not None:
        yield {"kind": "kept", **common, **kept}


def _named(metric: str) -> Cells:
    task, _, name = metric.partition("/")
    return {"task": task, "metric": name}


def _places(models: Sequence[ModelRow], suite: str) -> Cells:
    runs, seals = (";".join(str(model[key]) for model in models) for key in ("run", "seal"))
    return {"run": runs, "seal": seals, "scores": ";".join(model["scores"].get(suite, "") for model in models)}

"""A study's report as CSV in long form: one row a score, a mean over seeds, a difference or a forecast."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from megacode.study_report.printed import ReportRows
from megacode.study_report.shapes import ModelRow, StudyReport

COLUMNS = (
    "kind",
    "arm",
    "baseline",
    "seed",
    "task",
    "metric",
    "value",
    "se",
    "low",
    "high",
    "n",
    "run",
    "seal",
    "scores",
)
MARK = ",".join(COLUMNS)
Cells = Sequence[object]


def render_csv(document: StudyReport) -> str:
    """Return a report as CSV; numbers have all their digits, in the scores' own unit (shares of 1).

    `kind` is `score` (of one model), `mean` (of an arm over its seeds), `difference` (arm minus baseline, with the
    interval that is corrected within its family) or `forecast` (of the study file, with its interval). `run`, `seal`
    and `scores` list all models of a row, split by `;`.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(["" if cell is None else cell for cell in row] for row in _rows(document))
    return file.getvalue()


def _rows(document: StudyReport) -> Iterator[Cells]:
    lookup = ReportRows(document)
    models = {arm["name"]: lookup.models(arm["name"]) for arm in document["arms"]}
    suites = {metric["metric"]: metric["suite"] for metric in document["metrics"]}
    for row in document["scores"]:
        task, _, metric = row["metric"].partition("/")
        suite = suites[row["metric"]]
        for seed, value in row["by_seed"].items():
            own = [model for model in models[row["arm"]] if str(model["seed"]) == seed]
            error = row["errors_by_seed"][seed]
            head = ("score", row["arm"], None, seed, task, metric)
            yield *head, value, error, None, None, row["items"], *_places(own, suite)
        scored = [model for model in models[row["arm"]] if str(model["seed"]) in row["by_seed"]]
        yield ("mean", row["arm"], None, None, task, metric, row["value"], row["standard_error"],
               row["low"], row["high"], row["items"], *_places(scored, suite))  # fmt: skip
    for one in document["comparisons"]:
        task, _, metric = one["metric"].partition("/")
        suite = suites[one["metric"]]
        both = [document["provenance"][name] for name in one["models"]]
        yield ("difference", one["arm"], one["baseline"], None, task, metric, one["difference"], one["standard_error"],
               one["simultaneous_low"], one["simultaneous_high"], one["items"], *_places(both, suite))  # fmt: skip
    for forecast in document["forecasts"]:
        task, _, metric = forecast["metric"].partition("/")
        own = [model for model in models[forecast["arm"]] if model["run"] is not None]
        yield ("forecast", forecast["arm"], None, None, task, metric, forecast["value"], None,
               forecast["low"], forecast["high"], None, *_places(own, suites.get(forecast["metric"], "")))  # fmt: skip


def _places(models: Sequence[ModelRow], suite: str) -> tuple[str, str, str]:
    runs, seals = (";".join(str(model[key]) for model in models) for key in ("run", "seal"))
    return runs, seals, ";".join(model["scores"].get(suite, "") for model in models)

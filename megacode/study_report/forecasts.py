"""Forecasts: what a study file expects of an arm, beside what was measured.

A forecast counts as registered beforehand only if the study's history shows it: the first version that was run with the
arm already had the same forecast. A forecast that was added later is shown, and said to be no test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megacode.study.places import StudyDir
from megacode.study.schema import Forecast, Study
from megacode.study_report.next_metrics import metrics_of
from megacode.study_report.results import StudyResults
from megacode.study_runs.history import versions

_Json = dict[str, Any]


def score_forecasts(
    study: Study, measured: Mapping[str, Mapping[str, float]], history: Sequence[Mapping[str, Any]] = ()
) -> list[_Json]:
    """Return the forecasts of a study, each beside what was measured.

    Args:
        study: with the forecasts.
        measured: by the name of an arm with its levels (`code-50@470m`) and by metric, the mean over seeds.
        history: versions of the study that were run, oldest first, each with its `document`.

    Returns:
        For each arm, metric and combination of levels that it is for: `arm`, `metric`, `value`, `low`, `high`; then
        `measured`, `error` (measured minus value) and `inside` (whether the interval holds it), null where it is not
        scored; and `registered`: whether the forecast was written before the arm was trained, null if unknown.
    """
    rows = []
    for name, arm in study.arms.items():
        for metric, forecast in arm.forecast.items():
            known = registered_before(history, name, metric, forecast)
            cells = [cell for cell in measured if cell.partition("@")[0] == name and _meant(forecast, cell)]
            for cell in cells or ["@".join((name, *forecast.at))]:
                rows.append(_row(cell, metric, forecast, measured.get(cell, {}).get(metric), known))
    return rows


def _meant(forecast: Forecast, cell: str) -> bool:
    levels = cell.split("@")[1:]
    return all(level in levels for level in forecast.at)


def _row(cell: str, metric: str, forecast: Forecast, measured: float | None, registered: bool | None) -> _Json:
    return {
        "arm": cell,
        "metric": metric,
        "value": forecast.value,
        "low": forecast.low,
        "high": forecast.high,
        "measured": measured,
        "error": None if measured is None else measured - forecast.value,
        "inside": None if measured is None else forecast.low <= measured <= forecast.high,
        "registered": registered,
    }


def registered_before(history: Sequence[Mapping[str, Any]], arm: str, metric: str, forecast: Forecast) -> bool | None:
    """Return whether the first version that was run with an arm had this forecast; None if none was run with it."""
    for version in history:
        arms = version.get("document", {}).get("arms", {})
        if arm in arms:
            own = (arms[arm].get("forecast") or {}).get(metric) or {}
            return all(own.get(key) == getattr(forecast, key) for key in ("value", "low", "high"))
    return None


def forecast_rows(results: StudyResults, without: Sequence[str] = ()) -> list[_Json]:
    """Return the forecasts of a study beside the scores that are on disk; see `score_forecasts`.

    Args:
        results: of the study.
        without: tasks that are not compared.

    Raises:
        DataError: a score file is damaged.
    """
    study = results.study
    measured: dict[str, dict[str, float]] = {}
    for first in (cell for cell in results.arms() if study.arms[cell.arm].forecast):
        ends = {cell.seed: results.path(cell)[-1] for cell in results.cells(first.name)}
        # One at a time: arms that are not compared here may have been scored by other suites.
        metrics = metrics_of(results, {first.name: ends}, without)
        measured[first.name] = {name: float(one.values[first.name].mean()) for name, one in metrics.items()}
    return score_forecasts(study, measured, versions(StudyDir(study.directory)))

"""The report of a study as one JSON document: what `megacode study report --json` prints, and all pages are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megacode.study_report import beside, curves, journeys, limits, rows
from megacode.study_report.flags import model_flags
from megacode.study_report.forecasts import forecast_rows
from megacode.study_report.next_arms import law_of
from megacode.study_report.results import StudyResults, read_results
from megacode.study_report.scored import compare_arms
from megacode.study_report.shapes import StudyReport
from megacode.study_report.survival import survivals

LEVEL = 0.95


def report_document(path: Path, level: float = LEVEL, without: Sequence[str] = ()) -> StudyReport:
    """Return the report of a study; the same files give the same document.

    Args:
        path: of the study file.
        level: of the intervals.
        without: tasks that are not compared.

    Raises:
        ConfigError: the study is wrong, or declares a metric that does not exist.
        DataError: a data set cannot be read; score files are damaged, or cannot be compared.
        PlanError: an arm cannot be trained as it is written.
    """
    return document_of(read_results(path), level, without)


def document_of(results: StudyResults, level: float = LEVEL, without: Sequence[str] = ()) -> StudyReport:
    """Return the report of a study with its results; see `report_document`."""
    flags = model_flags(results)
    models, arms = rows.model_rows(results, flags), rows.arm_rows(results, flags)
    scored = compare_arms(results, level, without)
    places = list(dict.fromkeys(arm["place"] for arm in arms))
    survival, unmatched = survivals(results, level, without)
    overlaps = rows.contamination_rows(results)
    return {
        "study": _study(results),
        "level": level,
        "baseline": results.study.baseline,
        "seeds": list(results.study.seeds),
        "complete": all(model["state"] == "scored" for model in models),
        "missing": [*limits.missing(results, models, scored), *unmatched],
        "notes": scored.notes,
        "left_out": scored.left_out,
        "arms": arms,
        "models": models,
        # What the scores say ...
        "metrics": scored.metrics,
        "scores": scored.scores,
        "comparisons": scored.comparisons,
        "survival": survival,
        "headlines": curves.headlines(results, scored, places),
        "paper": beside.paper_rows(results),
        "paper_notes": beside.paper_notes(),
        "proportion": curves.proportions(results, arms),
        "pareto": curves.paretos(results, scored, places),
        "gain_per_flop": curves.gains(results, scored, arms),
        "heat_map": curves.heat_map(scored),
        "decision_accuracy": curves.decisions(scored, arms, places),
        # ... how they came about ...
        "waterfall": journeys.waterfalls(results, scored),
        "loss_by_source": journeys.loss_curves(results),
        "forgetting": journeys.forgettings(results),
        "tree": _tree(results),
        "exposure": rows.exposure_rows(results),
        "match": results.plan["match"],
        "contamination": overlaps,
        "law": law_of(results, without),
        "forecasts": forecast_rows(results, without),
        # ... and what they do not show.
        "limits": limits.limits(results, arms, overlaps, scored),
        "history": beside.history(results),
        "later_findings": beside.later_findings(),
        "provenance": {f"{model['arm']} seed {model['seed']}": model for model in models},
    }


def _study(results: StudyResults) -> dict[str, Any]:
    study = results.study
    return {
        "name": study.name,
        "file": str(results.file),
        "runs": study.directory,
        "suites": results.suites,
        "primary": list(study.compare.primary),
        "secondary": list(study.compare.secondary),
        "margin": study.compare.margin,
        "seed_sd": study.compare.seed_sd,
        "pairs": [list(pair) for pair in study.compare.pairs],
        "factors": {name: list(levels) for name, levels in study.factors.items()},
    }


def _tree(results: StudyResults) -> dict[str, Any]:
    """Return the tree of training as `study plan --json` has it, with the seal of each node that is trained."""
    plan = results.plan
    return {key: plan[key] for key in ("tokens", "tokens_by_level", "tokens_to_train", "flops", "nodes")}

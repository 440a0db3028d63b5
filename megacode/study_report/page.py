"""Write a study's report as one page: `report.html`, complete without a network and without JavaScript."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

import megacode
from megacode.study_report.sections import amounts, closing, effects, laws, reading, stretches, survival, tasks, trunks
from megacode.study_report.sections.lookup import ReportIndex
from megacode.study_report.shapes import StudyReport

TEMPLATE = "study.html.j2"


def render(document: StudyReport, directory: Path | None = None) -> str:
    """Return the page of a study; the same document gives the same bytes.

    Args:
        document: what `shapes.py` describes; parts without data are left out, or say how to get it.
        directory: where the page will lie; links to runs and score files are relative to it. None: the paths of the
            document are links as they are.

    Returns:
        HTML, self-contained: style, charts and a short script are in it.
    """
    environment = _environment()
    # Links are relative, so that the page and the runs can be moved or served together.
    environment.filters["link"] = lambda path: _link(str(path), directory)
    return environment.get_template(TEMPLATE).render(page(document))


def _environment() -> Environment:
    # The style, the chart macro and the script are those of a run's page.
    loader = ChoiceLoader([PackageLoader("megacode.study_report", "."), PackageLoader("megacode.report", ".")])
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)


def _link(path: str, directory: Path | None) -> str:
    relative = path if directory is None else Path(os.path.relpath(path, directory)).as_posix()
    # Names of runs may hold characters that a link would end at.
    return quote(relative, safe="/@+,=~:")


def page(document: StudyReport) -> dict[str, Any]:
    """Return the template's variables."""
    index = ReportIndex(document)
    proportions, paretos = amounts.proportions(index), amounts.pareto_figures(index)
    return {
        "version": megacode.__version__,
        "name": str(document["study"].get("name") or "study"),
        "lead": closing.lead(index),
        "status": closing.status(index),
        "cards": closing.cards(index),
        "missing": document["missing"],
        "headlines": effects.headlines(index),
        "forest": effects.forest_figure(index),
        "score_table": effects.score_table(index),
        "survival": survival.survival_figure(index),
        "survival_head": survival.HEAD,
        "survival_rows": survival.survival_table(index),
        "survival_note": survival.NOTE,
        "paper_gains": closing.paper_gains(index),
        "paper_notes": document["paper_notes"] if document["paper"] else [],
        "amounts": any(figure.drawings for figure in [*proportions, *paretos]),
        "proportions": proportions,
        "paretos": paretos,
        "waterfall": stretches.waterfall_figure(index),
        "clocks": stretches.clocks(index),
        "forgetting": stretches.forgetting_table(index),
        "tree": trunks.tree_figure(index),
        "totals": trunks.tree_totals(index),
        "gain": amounts.gain_figure(index),
        "heat_maps": tasks.heat_maps(index),
        "heat_legend": tasks.heat_legend(),
        "ranked_sizes": tasks.ranked_sizes(index),
        "agreement": reading.agreement(index),
        "exposure": reading.exposure(index),
        "matches": reading.matches(index),
        "contamination": reading.contamination(index),
        "law_figures": laws.law_figures(index),
        "refusals": laws.refusals(index),
        "proposals": laws.proposals(index),
        "forecasts": laws.forecasts(index),
        "later_findings": document["later_findings"],
        "limits": document["limits"],
        "notes": document["notes"],
        "left_out": document["left_out"],
        "history": document["history"],
        "facts": closing.study_facts(index),
        "provenance": closing.provenance(index),
    }

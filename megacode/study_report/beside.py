"""What stands beside a study's own numbers: those of the paper, what others found since, and the study's history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megacode.study.paper import Paper, the_paper
from megacode.study.places import StudyDir
from megacode.study.schema import Study
from megacode.study_report.results import StudyResults
from megacode.study_report.shapes import LaterFinding, PaperRow
from megacode.study_report.tasks import read_facts
from megacode.study_runs.history import changes_since_scores, versions

_POINTS = 100
_LEAST = 1.0  # points; a smaller baseline is a handful of right answers, and no base of a percentage
_AGREE = 0.005  # relative gains that differ by less are one number, rounded


def paper_rows(results: StudyResults) -> list[PaperRow]:
    """Return the paper's numbers for arms that have a counterpart in it, at the first levels only.

    Its table is of one size of model, so other levels of the study have none.
    """
    study, paper = results.study, the_paper()
    first = results.tree.grid.cells[0].place
    at = "".join(f"@{level}" for level in first)
    pairs = [(arm, study.baseline) for arm in study.arms if arm != study.baseline]
    pairs += [pair for pair in study.compare.pairs if pair not in pairs]
    # `only` may leave an arm out at the first levels.
    trained = {cell.arm for cell in results.tree.grid.cells if cell.place == first}
    rows = []
    for arm, base in pairs:
        names = counterpart(study, arm), counterpart(study, base)
        if None not in names and {arm, base} <= trained and names[0] != names[1]:
            rows += list(_rows(paper, (arm + at, base + at), (str(names[0]), str(names[1]))))
    in_bits = _means_in_bits(results)
    return [row for row in rows if row["metric"] not in in_bits]


def _means_in_bits(results: StudyResults) -> set[str]:
    """Return the means that are bits per byte here, such as those of `to-code-gold`; the paper has accuracies."""
    owners: dict[str, bool] = {}
    for suite in results.suites:
        document = next((one.documents[suite] for one in results.trained.values() if suite in one.documents), {})
        parts = document.get("mean_parts") or {}
        for name, members in parts.items():
            tasks = [members] if isinstance(members, dict) else [parts[member] for member in members]
            metrics = [metric for members in tasks for metric in members.values()]
            # The first suite that has a name keeps it.
            owners.setdefault(f"mean/{name}", all(metric.startswith("bits_per_byte") for metric in metrics))
    return {name for name, is_bits in owners.items() if is_bits}


def counterpart(study: Study, arm: str) -> str | None:
    """Return the arm of the paper that an arm stands beside: the one it names, or the one of its own name."""
    named = study.arms[arm].paper
    return named or (arm if arm in the_paper().table else None)


def _rows(paper: Paper, ours: tuple[str, str], theirs: tuple[str, str]) -> Iterator[PaperRow]:
    for metric, score in paper.table[theirs[0]].items():
        base = paper.table[theirs[1]][metric]
        stated = paper.stated.get((*theirs, metric))
        relative = score / base - 1 if base >= _LEAST else None
        yield {
            "arm": ours[0],
            "paper_arm": paper.names.get(theirs[0], theirs[0]),
            "baseline": ours[1],
            "metric": metric,
            "score": score / _POINTS,
            "points": round(score - base, 6),
            "relative": relative,
            "stated": stated,
            "note": _note(base, relative, stated),
        }


def _note(base: float, relative: float | None, stated: float | None) -> str:
    if relative is None:
        note = f"; its text says {100 * stated:+.0f} %" if stated is not None else ""
        return f"no percentage: the baseline has {base:g} points{note}"
    if stated is not None and abs(stated - relative) > _AGREE:
        return f"its text says {100 * stated:+.1f} %, its table gives {100 * relative:+.1f} %"
    return ""


def paper_notes() -> list[str]:
    """Return what a reader of the paper's numbers must know."""
    paper = the_paper()
    return [f"Numbers of {paper.source}.", *paper.notes]


def later_findings() -> list[LaterFinding]:
    """Return what others found since the paper."""
    # Shipped with the report: a page must not depend on the network.
    rows = read_facts("later_findings")
    return [{"fact": row["fact"], "numbers": row["numbers"].strip(), "source": row["source"]} for row in rows]


def history(results: StudyResults) -> dict[str, Any] | None:
    """Return what has changed in the study since it was first scored; None if it was never run by `study run`.

    Returns:
        `versions`: how many were run; `changes`: of `changes_since_scores`.
    """
    place = StudyDir(results.study.directory)
    count = len(versions(place))
    return {"versions": count, "changes": changes_since_scores(results.study, place)} if count else None

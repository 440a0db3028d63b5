"""What surrounds the results: cards and status at the head, limits, later findings, and provenance at the foot."""

from __future__ import annotations

from typing import Any

from megacode.base.units import counted, format_count
from megacode.report.figure import NOTHING, percent
from megacode.statistics.words import figure as printed
from megacode.study_report.sections.lookup import ReportIndex, items_file
from megacode.study_report.sections.trunks import flops_text
from megacode.study_report.shapes import ModelRow


def lead(index: ReportIndex) -> str:
    """Return what the study is, in a sentence."""
    document = index.document
    arms, seeds = counted(len(index.names()), "arm"), counted(len(document["seeds"]), "seed")
    places = [place for place in index.places() if place]
    where = f" at {' and '.join(places)}" if places else ""
    return f"{arms}{where}, {seeds} each, compared with {index.short(document['baseline'])}."


def status(index: ReportIndex) -> dict[str, str]:
    """Return how complete the study is."""
    models = index.document["models"]
    done = sum(model["state"] == "scored" for model in models)
    text = f"{done} of {counted(len(models), 'model')} scored"
    return {"state": "finished" if index.document["complete"] else "running", "text": text}


def cards(index: ReportIndex) -> list[dict[str, str]]:
    """Return the headline figures."""
    document = index.document
    primary = [row for row in document["comparisons"] if row["family"] == "primary"]
    # Only the family that was declared: the rest was not asked in advance.
    distinguishable = sum(row["distinguishable"] for row in primary)
    tokens = document["tree"].get("tokens") or {}
    # Compared with a run a row, the honest saving: nobody trains an arm again that another one goes through.
    shared, alone = tokens.get("tree") or 0, tokens.get("rows") or 0
    saved = f"{100 * (1 - shared / alone):.0f} % less than a run a row" if alone > shared else "as many as a run a row"
    flags = sum(bool(row["flags"]) for row in document["arms"])
    return [
        _card("Distinguishable", f"{distinguishable} of {len(primary)}" if primary else NOTHING,
              "differences of the primary family, corrected together" if primary else "nothing is compared yet"),
        _visible(index),
        _card("Tokens of all runs", format_count(shared) if shared else NOTHING, saved),
        _card("FLOPs", flops_text(index) or NOTHING, "of the whole tree, all seeds"),
        _card("Seeds", str(len(document["seeds"])), _about(index)),
        _card("Arms with flags", str(flags), "withheld samples, other layouts, changed settings" if flags else
              "no run rolled back or withheld samples"),
    ]  # fmt: skip


def _card(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _about(index: ReportIndex) -> str:
    kinds = {row["about"] for row in index.document["comparisons"]}
    if not kinds:
        return "no comparison yet"
    if kinds == {"recipes"}:
        return "differences hold for other seeds of these recipes"
    return (
        "some differences are about these models alone" if "recipes" in kinds else "differences of these models alone"
    )


def _visible(index: ReportIndex) -> dict[str, str]:
    """Return the smallest difference that the first primary metric could show."""
    rows = index.compared(index.primary()[:1]).values()
    seen = [(row["smallest_visible"], row) for row in rows if row["smallest_visible"] is not None]
    label = "Smallest visible difference"
    if not seen:
        return _card(label, NOTHING, "not known yet")
    # The middle of the comparisons: one odd pair would speak for all.
    value, row = sorted(seen, key=lambda pair: pair[0])[len(seen) // 2]
    # The unit stands below: beside the number it would be cut on a phone.
    note = f"{row['unit']} in {index.title(row['metric'])}, found with a chance of 80 %".strip()
    return _card(label, printed(row, value), note)


def provenance(index: ReportIndex) -> list[dict[str, Any]]:
    """Return each arm's models with run, checkpoint, seal, score files and files of items."""
    return [
        {
            "anchor": f"from-{index.numbers[arm]}",
            "arm": index.short(arm),
            "full": arm,
            "flags": index.arms[arm]["flags"] if arm in index.arms else [],
            "rows": [_model(model) for model in models],
        }
        for arm, models in index.models.items()
        if models
    ]


def _model(model: ModelRow) -> dict[str, Any]:
    files = [{"suite": suite, "scores": file, "answers": items_file(file)} for suite, file in model["scores"].items()]
    return {
        "seed": model["seed"],
        "state": model["state"],
        "run": model["run"] or "",
        "checkpoint": model["checkpoint"] or "",
        "iteration": f"{model['iteration']:,}" if model["iteration"] is not None else NOTHING,
        "seal": model["seal"] or "",
        "files": files,
        "flags": model["flags"],
    }


def paper_gains(index: ReportIndex) -> list[dict[str, Any]]:
    """Return the paper's differences, computed from its table, beside the gains that its text states."""
    return [
        {
            "arm": row["paper_arm"],
            "metric": index.title(row["metric"]),
            "stated": _stated(row["stated"]),
            "computed": f"{100 * row['relative']:+.1f} %" if row["relative"] is not None else NOTHING,
            "points": f"{row['points']:+.1f}",
            "yours": _yours(index, row["arm"], row["baseline"], row["metric"]),
            "note": row["note"],
            "differs": _differ(row["relative"], row["stated"]),
        }
        for row in sorted(index.document["paper"], key=lambda row: row["stated"] is None)
    ]  # fmt: skip


def _differ(computed: float | None, stated: float | None) -> bool:
    # Half a point of rounding in what the text states.
    return computed is not None and stated is not None and abs(computed - stated) > 0.0051


def _stated(gain: float | None) -> str:
    if gain is None:
        return ""
    # Twelve times is how the paper says it; +1100 % is the same.
    return f"{100 * gain:+.1f} %" if gain < 5 else f"{1 + gain:.0f}x"


def _yours(index: ReportIndex, arm: str, baseline: str, metric: str) -> str:
    row = index.compared([metric]).get((arm, baseline, metric))
    if row is None:
        return NOTHING
    gain = f", {100 * row['relative']['value']:+.1f} %" if row["relative"] else ""
    return f"{printed(row, row['difference'], sign=True)} {row['unit']}{gain}"


def study_facts(index: ReportIndex) -> list[dict[str, str]]:
    """Return what was declared in advance."""
    study = index.document["study"]
    level = percent(index.document["level"]).replace(".0 %", " %")
    facts = {
        "study file": study.get("file"),
        "runs": study.get("runs"),
        "baseline": index.document["baseline"],
        "primary family (max-T)": ", ".join(study.get("primary") or []),
        "secondary family (Holm)": ", ".join(study.get("secondary") or []),
        "margin": f"{study['margin']:g} points" if study.get("margin") else None,
        "spread over seeds, declared": study.get("seed_sd"),
        "level of intervals": level,
        "suites": ", ".join(study.get("suites") or []),
    }
    return [{"name": name, "value": str(value)} for name, value in facts.items() if value not in (None, "")]

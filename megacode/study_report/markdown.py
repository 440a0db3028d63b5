"""A study's report as Markdown, for a repository or an issue."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megacode.base.units import counted, format_count
from megacode.study_report.printed import (
    NOTHING,
    ReportRows,
    difference_text,
    families,
    flag_texts,
    interval_said,
    interval_text,
    relative_text,
    score_lines,
    score_text,
)
from megacode.study_report.sections import laws, survival
from megacode.study_report.sections.lookup import ReportIndex
from megacode.study_report.sections.teaching import share_text
from megacode.study_report.shapes import ComparisonRow, MetricRow, ModelRow, StudyReport

MARK = "<!-- megacode study report -->"


def render_markdown(document: StudyReport, directory: Path | None = None) -> str:
    """Return a report as Markdown.

    Args:
        document: the report.
        directory: where the file will lie; links are relative to it. None: paths as they are.
    """
    lookup = ReportRows(document)
    parts = [
        _head(document),
        _headlines(document),
        *(_scores(lookup, place) for place in lookup.places),
        *(_differences(document, family, title) for family, title in families(document)),
        _survival(document),
        _tasks(lookup),
        _paper(document),
        _exposure(document),
        _match(document),
        _forgetting(document),
        _transfer(document),
        _contamination(document),
        _next_arms(document),
        _forecasts(document),
        _sentences("What this does not show", document["limits"]),
        _history(document),
        _later(document),
        _provenance(document, directory),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(document: StudyReport) -> str:
    study, arms = document["study"], [arm for arm in document["arms"] if arm["same_as"] is None]
    seeds = ", ".join(str(seed) for seed in document["seeds"])
    tokens = document["tree"]["tokens"]
    lines = [
        MARK,
        f"# {study['name']}",
        "",
        f"{counted(len(arms), 'arm')}, seed{'s' * (len(document['seeds']) > 1)} {seeds}, "
        f"compared with {document['baseline']}; intervals of {100 * document['level']:g} %. "
        f"{format_count(tokens['tree'])} tokens as a tree, {format_count(tokens['rows'])} as one run a row, "
        f"{format_count(tokens['alone'])} for each arm alone.",
    ]
    lines += ["", *(f"* missing: {line}" for line in document["missing"])] if document["missing"] else []
    return "\n".join(lines)


def _headlines(document: StudyReport) -> str:
    return _sentences("What was found", [row["words"] for row in document["headlines"]] + document["notes"])


def _sentences(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(f"* {line}" for line in lines) if lines else ""


def _scores(lookup: ReportRows, place: str) -> str:
    """Return the table of results of a place: an arm a row; bold is better than the baseline after correction."""
    document, columns = lookup.document, lookup.columns(place)
    if not columns:
        return ""
    rows = []
    for line in score_lines(lookup, place):
        arm = line.arm
        cells = [f"**{text}**" if is_better else text for text, is_better in line.cells]
        marks = "".join(f" [{number}]" for number in line.flags)
        name = f"[{arm['name']}](#{_anchor(arm['same_as'] or arm['name'])}){marks}"
        rows.append([name, format_count(arm["tokens"]), *cells])
    title = f"Scores at {place}" if place else "Scores"
    head = ["arm", "tokens", *(_headed(metric) for metric in columns)]
    note = f"Means over seeds; ± is {interval_said(document)}. Shares are in points. "
    note += "Bold: better than the baseline after correction."
    listed = "".join(f"\n\n[{number}] {text}" for number, text in enumerate(flag_texts(document, place), 1))
    return f"## {title}\n\n{note}\n\n{_table(head, rows)}{listed}"


def _headed(metric: MetricRow) -> str:
    return metric["title"] + (" ↓" if metric["higher_is_better"] is False else "")


def _differences(document: StudyReport, family: str, title: str) -> str:
    rows = [_difference(row) for row in document["comparisons"] if row["family"] == family]
    head = ["metric", "arm", "baseline", "difference", "corrected interval", "relative", "df", "finding"]
    return f"## Differences, {family}: {title}\n\n{_table(head, rows)}"


def _difference(row: ComparisonRow) -> list[str]:
    df = row["degrees_of_freedom"]
    finding = row["verdict"] or "not distinguishable"
    about = f"[{row['arm']}](#{_anchor(row['arm'])})"
    base = f"[{row['baseline']}](#{_anchor(row['baseline'])})"
    return [row["metric"], about, base, difference_text(row), interval_text(row), relative_text(row),
            NOTHING if df is None else f"{df:.1f}", finding]  # fmt: skip


def _tasks(lookup: ReportRows) -> str:
    """Return the table of tasks: scores of each arm, with chance and how well a task ranks corpora."""
    document = lookup.document
    tasks = [metric for metric in document["metrics"] if not metric["metric"].startswith("mean/")]
    arms = [
        arm for arm in document["arms"] if arm["same_as"] is None and any(a == arm["name"] for a, _ in lookup.scores)
    ]
    if not tasks or not arms:
        return ""
    rows = []
    for metric in tasks:
        chance = NOTHING if metric["chance"] is None else f"{100 * metric['chance']:.1f}"
        known = metric["reliability"]
        ranks = (
            NOTHING
            if known is None
            else "/".join(f"{100 * share:.0f}" for share in known["decision_accuracy"].values())
        )
        scores = [score_text(lookup.score(arm["name"], metric["metric"]), metric) for arm in arms]
        rows.append([_headed(metric), f"{metric['items']:,}", chance, ranks, *scores])
    head = ["task", "items", "chance", "ranks", *(f"[{arm['name']}](#{_anchor(arm['name'])})" for arm in arms)]
    note = "ranks: pairs of corpora ordered as by a large model, in per cent, at 150M / 300M / 750M (as published)."
    return f"## Tasks\n\n{_table(head, rows)}\n\n{note}"


def _paper(document: StudyReport) -> str:
    """Return the paper's numbers beside the study's own, where both have them."""
    if not document["paper"]:
        return ""
    own = {(row["arm"], row["baseline"], row["metric"]): row for row in document["comparisons"]}
    rows = []
    for row in document["paper"]:
        ours = own.get((row["arm"], row["baseline"], row["metric"]))
        relative = NOTHING if row["relative"] is None else f"{100 * row['relative']:+.1f} %"
        here = NOTHING if ours is None else f"{difference_text(ours)} ({interval_text(ours)})"
        rows.append([row["metric"], row["arm"], row["baseline"], f"{row['points']:+.1f}", relative, here, row["note"]])
    head = ["metric", "arm", "baseline", "paper, points", "paper, relative", "here", "note"]
    notes = "\n".join(f"* {note}" for note in document["paper_notes"])
    return f"## The paper beside\n\n{_table(head, rows)}\n\n{notes}"


def _exposure(document: StudyReport) -> str:
    rows = []
    for row in document["exposure"]:
        phases = ", ".join(f"{name} {count:,}" for name, count in row["by_phase"].items() if count)
        # Three digits of passes: matched arms agree to one window, and it must be visible.
        figures = [f"{row['samples']:,}", f"{row['passes']:.3f}", f"{100 * row['rate_share']:.1f} %"]
        rows.append([row["arm"], row["source"], *figures, format_count(row["mean_age"]), phases])
    head = ["arm", "source", "samples", "passes", "share by rate", "mean age, tokens", "samples by phase"]
    return f"## What each arm reads\n\n{_table(head, rows)}" if rows else ""


def _match(document: StudyReport) -> str:
    lines = []
    for match in document["match"]:
        arms = ", ".join(match["arms"])
        if not match["equal"]:
            lines.append(f"{arms} do not match: " + "; ".join(problem["what"] for problem in match["problems"]))
        elif match["exposure"] is not None:
            lines.append(f"proven: {arms} read equally many samples of each source, and the same windows")
        if match["equal"] and match["end"] is not None:
            lines.append(f"proven: {arms} end with the same {match['end']}")
    return _sentences("Arms that match", lines)


def _forgetting(document: StudyReport) -> str:
    rows = [[row["arm"], row["phase"], row["source"], f"{row['value']:+.4f}"] for row in document["forgetting"]]
    note = "Loss on held-out documents at the end of a phase, minus the best before it, in nats per token."
    return f"## What phases forget\n\n{_table(['arm', 'phase', 'source', 'change'], rows)}\n\n{note}" if rows else ""


def _transfer(document: StudyReport) -> str:
    rows = [
        [row["arm"], row["phase"], f"{row['step']} to {row['loss']}", share_text(row), f"{row['first']:+z.0%}",
         f"{row['last']:+z.0%}"]
        for row in document["transfer_by_phase"]
    ]  # fmt: skip
    head = ["arm", "phase", "step to loss", "mean", "first", "last"]
    note = (
        "What a step on one source does to the held-out loss of another, as a share of what a step on the latter does, "
        "by first order. Above 0 it helps. ± is the interval over seeds."
    )
    return f"## Which source teaches which\n\n{note}\n\n{_table(head, rows)}" if rows else ""


def _survival(document: StudyReport) -> str:
    index = ReportIndex(document)
    rows = [list(line.values()) for line in survival.survival_table(index)]
    return f"## Do gains last?\n\n{_table(survival.HEAD, rows)}\n\n{survival.NOTE}" if rows else ""


def _contamination(document: StudyReport) -> str:
    rows = [
        [row["arm"], row["task"], f"{row['hits']:,} of {row['items']:,}", f"{100 * row['share_checked']:.0f} %"]
        for row in document["contamination"]
        # Rows without a hit are most of them, and are in the JSON.
        if row["hits"]
    ]
    head = ["arm", "task", "items that occur in what it read", "tokens checked"]
    return f"## Contamination\n\n{_table(head, rows)}" if rows else ""


def _next_arms(document: StudyReport) -> str:
    """Return how well laws of the blend predict, what they propose, and why they propose nothing."""
    law = document["law"]
    if law is None:
        return ""
    index = ReportIndex(document)
    parts = ["## From these arms to the next"]
    fits = [(index.title(row["metric"]), row["law"]) for row in law.get("targets") or [] if row["law"]]
    rows = [
        [title, f"{fit['left_out_r2']:.2f}", f"{fit['deviation']:.4f}", f"{fit['degrees_of_freedom']}"]
        for title, fit in fits
    ]
    parts += [_table(["law of", "left-out R²", "sd of an arm", "df"], rows)] if rows else []
    refused = [f"* no blend by the law: {row['what']}; {row['fix']}" for row in laws.refusals(index)]
    parts += ["\n".join(refused)] if refused else []
    offered = laws.proposals(index)
    keys = ("name", "blend", "predicted", "nearest")
    head = ["proposal", "blend", "predicted", "nearest arm"]
    parts += [_table(head, [[row[key] or NOTHING for key in keys] for row in offered])] if offered else []
    parts += [f"To paste, {row['name']}:\n\n```yaml\n{row['block'].rstrip()}\n```" for row in offered if row["block"]]
    return "\n\n".join(parts)


def _forecasts(document: StudyReport) -> str:
    keys = ("arm", "metric", "forecast", "measured", "outcome", "registered")
    rows = [[row[key] for key in keys] for row in laws.forecasts(ReportIndex(document))]
    head = ["arm", "metric", "forecast", "measured", "outcome", "written"]
    return f"## Forecasts in the study file\n\n{_table(head, rows)}" if rows else ""


def _history(document: StudyReport) -> str:
    history = document["history"]
    if history is None:
        return ""
    lines = [f"{row['key']}: {row['before']} became {row['now']}" for row in history["changes"]]
    return _sentences("Changed since the first score", lines or ["nothing"])


def _later(document: StudyReport) -> str:
    rows = [[row["fact"], row["numbers"], row["source"]] for row in document["later_findings"]]
    return f"## Found by others since\n\n{_table(['fact', 'numbers', 'source'], rows)}"


def _provenance(document: StudyReport, directory: Path | None) -> str:
    """Return run, seal and score files of each model; the arms' names in all tables lead here."""
    parts = ["## Where the numbers come from"]
    for arm in (arm for arm in document["arms"] if arm["same_as"] is None):
        lines = [f'### <a id="{_anchor(arm["name"])}"></a>{arm["name"]}', ""]
        for model in (model for model in document["models"] if model["arm"] == arm["name"]):
            lines.append(f"* seed {model['seed']}: " + "; ".join(_places(model, directory)))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _places(model: ModelRow, directory: Path | None) -> Iterator[str]:
    if model["run"] is None:
        yield str(model["state"])
        return
    yield f"run {_link(str(model['run']), directory)}, iteration {model['iteration']}, seal `{str(model['seal'])[:16]}`"
    if model["checkpoint"] is None:
        yield "checkpoint deleted"
    for suite, path in model["scores"].items():
        yield f"{suite} {_link(path, directory)}"
    if not model["scores"]:
        yield "not scored"


def _link(path: str, directory: Path | None) -> str:
    # Relative, so that a repository that holds report and runs can be moved.
    target = path if directory is None else Path(os.path.relpath(path, directory)).as_posix()
    return f"[{Path(path).name}](<{target}>)"


def _anchor(name: str) -> str:
    # Signs other than these by their number, so that `a+b` and `a-b` have two anchors.
    return "arm-" + "".join(sign if sign.isalnum() or sign in "-." else f"_{ord(sign):x}_" for sign in name)


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_line(head), _line("---" for _ in head)] if isinstance(head, list) else []
    return "\n".join([*lines, *(_line(row) for row in rows)])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

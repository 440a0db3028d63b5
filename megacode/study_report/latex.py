"""A study's tables as LaTeX (booktabs), to be taken into a paper with `\\input`."""

from __future__ import annotations

from collections.abc import Iterator

from megacode.base.units import format_count
from megacode.study_report.printed import (
    ReportRows,
    difference_text,
    families,
    flag_texts,
    interval_said,
    interval_text,
    relative_text,
    score_lines,
)
from megacode.study_report.sections.laws import forecasts
from megacode.study_report.sections.lookup import ReportIndex
from megacode.study_report.shapes import StudyReport

MARK = "% megacode study report"
_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\to$", "↓": r"$\downarrow$",
    "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def render_latex(document: StudyReport) -> str:
    """Return the tables of a report: scores of each place, differences of each declared family, and forecasts.

    Needs `\\usepackage{booktabs}`. Comments after a row say which runs, checkpoints and score files it comes from.
    """
    lookup = ReportRows(document)
    lines = [
        MARK,
        f"% study {document['study']['name']}; needs \\usepackage{{booktabs}}; ± is {interval_said(document)}",
    ]
    for place in lookup.places:
        lines += _scores(lookup, place)
    for family, title in families(document):
        lines += _differences(document, family, title)
    lines += _forecasts(document)
    return "\n".join(lines) + "\n"


def _scores(lookup: ReportRows, place: str) -> Iterator[str]:
    document, columns = lookup.document, lookup.columns(place)
    if not columns:
        return
    heads = [
        _escaped(metric["title"]) + (r" $\downarrow$" if metric["higher_is_better"] is False else "")
        for metric in columns
    ]
    yield from _begin("lr" + "r" * len(columns), ["arm", "tokens", *heads])
    for line in score_lines(lookup, place):
        texts = ((_escaped(text), is_better) for text, is_better in line.cells)
        cells = [rf"\textbf{{{text}}}" if is_better else text for text, is_better in texts]
        yield _row([_named(line.arm["name"], line.flags), format_count(line.arm["tokens"]), *cells])
        yield from _comments(lookup, line.arm["name"])
    note = "Bold: better than the baseline after correction for many comparisons. $\\pm$ is "
    note += f"{_escaped(interval_said(document))}."
    flags = [f"$^{{{number}}}$ {_escaped(text)}." for number, text in enumerate(flag_texts(document, place), 1)]
    caption = f"Scores{f' at {_escaped(place)}' if place else ''}; shares in points. {' '.join([note, *flags])}"
    yield from _end(caption, _label(document, f"scores-{place}" if place else "scores"))


def _differences(document: StudyReport, family: str, title: str) -> Iterator[str]:
    yield from _begin("lllrrr", ["metric", "arm", "baseline", "difference", "corrected interval", "relative"])
    # The exploratory family is left out: hundreds of rows, and no paper prints them.
    for row in (row for row in document["comparisons"] if row["family"] == family):
        names = [_escaped(row[key]) for key in ("metric", "arm", "baseline")]
        difference = _escaped(difference_text(row))
        figures = [rf"\textbf{{{difference}}}" if row["verdict"] == "better" else difference]
        figures += [_escaped(interval_text(row)), _escaped(relative_text(row))]
        yield _row([*names, *figures])
    yield from _end(f"Differences, {family} family; {_escaped(title)}. Bold: better.", _label(document, family))


def _label(document: StudyReport, table: str) -> str:
    """Return a label of letters, digits and dashes: other signs end or break `\\label`."""
    name = f"{document['study']['name']}-{table}"
    return "tab:" + "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in name)


def _forecasts(document: StudyReport) -> Iterator[str]:
    rows = forecasts(ReportIndex(document))
    if not rows:
        return
    yield from _begin("llrrll", ["arm", "metric", "forecast", "measured", "outcome", "written"])
    for row in rows:
        cells = (row[key] for key in ("arm", "metric", "forecast", "measured", "outcome", "registered"))
        yield _row([_escaped(cell) for cell in cells])
    caption = "Forecasts in the study file, and what was measured; in brackets the interval that should hold it."
    yield from _end(caption, _label(document, "forecasts"))


def _row(cells: list[str]) -> str:
    line = " & ".join(cells) + r" \\"
    # After `\\` of the row before, LaTeX would read these as an option of it, across the line break.
    return "{}" + line if line.startswith(("[", "*")) else line


def _begin(columns: str, heads: list[str]) -> Iterator[str]:
    yield ""
    yield r"\begin{table}"
    yield r"\centering"
    yield rf"\begin{{tabular}}{{{columns}}}"
    yield r"\toprule"
    yield _row(heads)
    yield r"\midrule"


def _end(caption: str, label: str) -> Iterator[str]:
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield rf"\caption{{{caption}}}"
    yield rf"\label{{{label}}}"
    yield r"\end{table}"


def _comments(lookup: ReportRows, arm: str) -> Iterator[str]:
    """Yield where the numbers of a row come from."""
    for model in lookup.models(arm):
        files = ", ".join(model["scores"].values()) or model["state"]
        yield f"% {arm}, seed {model['seed']}: {model['run']}, seal {model['seal']}, {files}"


def _named(name: str, flags: list[int]) -> str:
    # Numbers, as in the Markdown: symbols run out after three.
    marks = ",".join(str(number) for number in flags)
    return _escaped(name) + (f"$^{{{marks}}}$" if marks else "")


def _escaped(text: str) -> str:
    return "".join(_ESCAPED.get(sign, sign) for sign in text)

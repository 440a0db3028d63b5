"""How much of what, and for what price: proportion curves, one score against another, gain per FLOP."""

from __future__ import annotations

import math

from megacode.base.units import format_count
from megacode.report.figure import Figure, colour, scientific
from megacode.study_report.charts.proportion import SharePoint, proportion
from megacode.study_report.charts.scatter import ScatterAxes, ScatterPoint, scatter
from megacode.study_report.sections.lookup import ReportIndex
from megacode.study_report.shapes import ScoreRow


def proportions(index: ReportIndex) -> list[Figure]:
    """Return two panels for each curve: language and code where these means exist, else the first metrics."""
    metrics = _two(index)
    figures = []
    for number, curve in enumerate(index.document["proportion"]):
        shares = {point["arm"]: point["share"] for point in curve["points"]}
        source = " and ".join(curve["of"])
        for part, metric in enumerate(metrics):
            points = [_share_point(index, arm, metric, share) for arm, share in shares.items()]
            # Two panels, never two axes in one: where two curves cross would be a matter of scales.
            title = index.title(metric).removesuffix(" (mean)") + (f", {curve['name']}" if curve["name"] else "")
            figures.append(proportion(f"proportion-{number}-{part}", title, index.unit(metric), source, points,
                                      colour(part), index.document["level"]))  # fmt: skip
    return figures


def _two(index: ReportIndex) -> list[str]:
    # The paper's question; another study has its own metrics.
    wanted = ["mean/nl", "mean/code"]
    return wanted if all(name in index.metrics for name in wanted) else (index.declared() or index.primary())[:2]


def _share_point(index: ReportIndex, arm: str, metric: str, share: float) -> SharePoint:
    row, paper = index.scores.get((arm, metric)), index.paper.get((arm, metric))
    papers = math.nan if paper is None else paper
    if row is None:
        return SharePoint(index.short(arm), share, math.nan, paper=papers)
    seeds = [index.scaled(metric, value) for value in row["by_seed"].values()]
    value, low, high = _ends(index, row)
    hover = f"{_said(index, row)}\n{index.said(arm)}"
    # One seed is its own mean: a dot beside it would add nothing.
    dots = seeds if len(seeds) > 1 else []
    return SharePoint(index.short(arm), share, value, low, high, dots, hover, index.where(arm), papers)


def _said(index: ReportIndex, row: ScoreRow) -> str:
    metric = row["metric"]
    ends = ""
    if row["low"] is not None and row["high"] is not None:
        ends = f" ({index.show(metric, row['low'])} .. {index.show(metric, row['high'])})"
    return f"{index.short(row['arm'])}, {index.title(metric)}: {index.show(metric, row['value'])}{ends}"


def pareto_figures(index: ReportIndex) -> list[Figure]:
    """Return one metric against another for each place, arrows from before to after the cooldown."""
    figures = []
    for number, chart in enumerate(index.document["pareto"]):
        at = {arm: position for position, arm in enumerate(chart["arms"])}
        before = {after: at[first] for first, after in chart["arrows"] if first in at}
        points = [_point(index, arm, chart["x"], chart["y"], before.get(arm)) for arm in chart["arms"]]
        # The paper's points come last, so that positions of arms stay as they are.
        points += [
            ScatterPoint(index.short(arm), x, y, paper=True, tooltip=f"the paper, {index.short(arm)}: {x:.1f}, {y:.1f}")
            for arm in chart["arms"]
            if (x := index.paper.get((arm, chart["x"]))) is not None
            and (y := index.paper.get((arm, chart["y"]))) is not None
        ]  # fmt: skip
        axes = ScatterAxes(_axis(index, chart["x"]), _axis(index, chart["y"]), best_x=_best(index, chart["x"]),
                           best_y=_best(index, chart["y"]))  # fmt: skip
        up, across = (index.title(metric).removesuffix(" (mean)") for metric in (chart["y"], chart["x"]))
        title = f"{up} against {across}" + (f", {chart['place']}" if len(index.places()) > 1 else "")
        reading = (
            "Crosses are intervals of each score alone; arms answer the same items, so differences are surer than "
            "crosses suggest. Arrows lead from an arm to the same arm with one more phase."
        )
        figures.append(scatter(f"pareto-{number}", title, points, axes, reading, level=index.document["level"]))
    return figures


def _axis(index: ReportIndex, metric: str) -> str:
    return f"{index.title(metric).removesuffix(' (mean)')} ({index.unit(metric) or 'score'})"


def _best(index: ReportIndex, metric: str) -> str:
    return {"higher": "high", "lower": "low", "": ""}[index.better(metric)]


def _point(index: ReportIndex, arm: str, x: str, y: str, after: int | None) -> ScatterPoint:
    across, up = index.scores.get((arm, x)), index.scores.get((arm, y))
    if across is None or up is None:
        return ScatterPoint(index.bare(arm), math.nan, math.nan)
    hover = f"{_said(index, across)}; {_said(index, up)}\n{index.said(arm)}"
    return ScatterPoint(
        index.bare(arm), *_ends(index, across)[:1], *_ends(index, up)[:1], *_ends(index, across)[1:],
        *_ends(index, up)[1:], hover, index.where(arm), after, baseline=index.arms[arm]["is_baseline"],
    )  # fmt: skip


def _ends(index: ReportIndex, row: ScoreRow) -> tuple[float, float, float]:
    metric = row["metric"]
    return index.scaled(metric, row["value"]), index.scaled(metric, row["low"]), index.scaled(metric, row["high"])


def gain_figure(index: ReportIndex) -> Figure:
    """Return the first primary metric over the FLOPs of an arm alone, for all places."""
    rows = index.document["gain_per_flop"]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    metric = next((name for name in index.primary() if name in metrics), metrics[0] if metrics else "")
    points = [
        _gain_point(index, row["arm"], metric, float(row["flops"]), row["score"])
        for row in rows
        if row["metric"] == metric and row["flops"] > 0
    ]
    spread = [point.x for point in points]
    # Equal budgets would be one tick on a logarithmic axis.
    log = bool(spread) and max(spread) > 3 * min(spread)
    axes = ScatterAxes("FLOPs of training the arm alone", _axis(index, metric) if metric else "", log, "low",
                       _best(index, metric), costs=True)  # fmt: skip
    reading = (
        "The cost of an arm is its whole own path, not its share of the tree: what it would cost somebody who wants "
        "this model alone. The dashed line joins arms that no cheaper one equals."
    )
    return scatter("gain-chart", "Score for the compute spent", points, axes, reading, level=index.document["level"])


def _gain_point(index: ReportIndex, arm: str, metric: str, flops: float, score: float) -> ScatterPoint:
    row = index.scores.get((arm, metric))
    value, low, high = _ends(index, row) if row else (index.scaled(metric, score), math.nan, math.nan)
    tokens = f", {format_count(index.arms[arm]['tokens'])} tokens" if arm in index.arms else ""
    hover = f"{index.short(arm)}: {index.show(metric, score)} for {scientific(flops)} FLOPs{tokens}\n{index.said(arm)}"
    base = arm in index.arms and index.arms[arm]["is_baseline"]
    return ScatterPoint(index.short(arm), flops, value, y_low=low, y_high=high, tooltip=hover, href=index.where(arm),
                        baseline=base)  # fmt: skip

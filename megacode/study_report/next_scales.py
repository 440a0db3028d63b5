"""A mixture at another scale: no law of small runs knows the losses of large ones, but their ranks may hold.

Source: decision accuracy, DataDecide, arXiv 2504.11393: one small scale orders 25 corpora as a large one does in about
80 % of pairs, and no fit over scales did better.
"""

from __future__ import annotations

from megacode.base.errors import ConfigError
from megacode.base.units import counted
from megacode.config.suggestions import did_you_mean
from megacode.mixture.gates import Refusal, decision_accuracy
from megacode.study_report.next_laws import StudyLaws
from megacode.study_report.next_metrics import scored_points


def other_scale(laws: StudyLaws, level: str | None) -> list[Refusal]:
    """Refuse a target at another level than that of the points, with how far their order of arms holds there.

    Args:
        laws: of the study.
        level: that a blend is for; None: that of the points.

    Raises:
        ConfigError: there is no such level.
    """
    place = laws.like.cell.place
    if level is None or level in place:
        return []
    known = [name for levels in laws.grid.study.factors.values() for name in levels]
    if level not in known:
        fix = did_you_mean(level, known) if known else "leave it out: the study has no factors"
        raise ConfigError(f"there is no level {level!r}", "--for", fix)
    here = "@".join(place) or "this scale"
    message = f"the law of {here} does not know the losses at {level}; {_ranking(laws, level)}"
    return [
        Refusal("another scale", message, f"leave out --for to choose at {here}, or name an arm of {level} by --like")
    ]


def _ranking(laws: StudyLaws, level: str) -> str:
    """Return how many pairs of arms both levels order alike, in words."""
    here = {(point.cell.arm, point.phase): loss for point, loss in zip(laws.points, laws.measured, strict=True)}
    common = [
        point
        for point in scored_points(laws.results, laws.every)
        if level in point.cell.place and (point.cell.arm, point.phase) in here
    ]
    metrics = laws.metrics_of(common) if common else {}
    if len(common) < 2 or not all(metric.name in metrics for metric in laws.metrics):
        return f"fewer than two arms are scored at both, so it is not known whether {level} ranks them alike"
    # By the same weights, since it is the weighted choice that must carry over.
    weighted = list(zip(laws.weights, laws.metrics, strict=True))
    large = [sum(weight * metrics[one.name].loss(point.name) for weight, one in weighted) for point in common]
    alike, pairs = decision_accuracy([here[point.cell.arm, point.phase] for point in common], large)
    agreement = f"{alike} of {counted(pairs, 'pair')} alike ({alike / pairs:.0%})"
    return f"{len(common)} arms are scored at both, which order {agreement}"

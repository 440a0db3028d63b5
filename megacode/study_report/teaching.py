"""Who teaches whom in each arm: the alignment probes of its runs, put together over its whole training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from megacode.base.files import Json
from megacode.metrics import alignment
from megacode.statistics.student import t_quantile
from megacode.study.grid import Cell
from megacode.study_report.course_shapes import PhaseTransfer, TransferCurve
from megacode.study_report.journeys import borders, over_training, phase_names
from megacode.study_report.results import StudyResults


def transfer_curves(results: StudyResults) -> list[TransferCurve]:
    """Return the transfer between any two sources over each arm's whole training; nothing without probes."""
    return [curve for cell in results.tree.grid.cells if cell.arm == cell.original for curve in _curves(results, cell)]


def _curves(results: StudyResults, cell: Cell) -> Iterator[TransferCurve]:
    points = list(over_training(results, cell, results.alignments))
    for step, loss in dict.fromkeys(pair for _, line in points for pair in alignment.pairs(line)):
        own = [(tokens, line) for tokens, line in points if math.isfinite(alignment.share(line, step, loss))]
        if own:
            yield {
                "arm": cell.name,
                "seed": cell.seed,
                "step": step,
                "loss": loss,
                "tokens": [tokens for tokens, _ in own],
                "share": [alignment.share(line, step, loss) for _, line in own],
                "cosine": [_cosine(line, step, loss) for _, line in own],
                "borders": borders(cell),
            }


def _cosine(line: Json, step: str, loss: str) -> float | None:
    cosine = alignment.entry(line, "cosines", step, loss)
    return cosine if math.isfinite(cosine) else None


def by_phase(results: StudyResults, curves: Sequence[TransferCurve], level: float) -> list[PhaseTransfer]:
    """Return the mean of each curve in each phase that was measured, with an interval over seeds.

    The interval is that of a mean of n seeds: mean ± t(n - 1) * sd / sqrt(n). Windows and measurements are no repeats.

    Args:
        results: the study.
        curves: of `transfer_curves`.
        level: of the intervals.
    """
    phases = {(cell.name, cell.seed): phase_names(cell) for cell in results.tree.grid.cells}
    inside: dict[tuple[str, str, str, int, str], dict[str, list[float]]] = {}
    for curve in curves:
        names, begin = phases[curve["arm"], curve["seed"]], 0
        for number, (name, end) in enumerate(zip(names, curve["borders"], strict=True)):
            # A measurement before any training counts to the first phase.
            within = [
                share
                for tokens, share in zip(curve["tokens"], curve["share"], strict=True)
                if begin < tokens <= end or tokens == begin == 0
            ]
            if within:
                key = (curve["arm"], curve["step"], curve["loss"], number, name)
                inside.setdefault(key, {})[str(curve["seed"])] = within
            begin = end
    return [
        {"arm": arm, "step": step, "loss": loss, "phase": phase, **_summary(by_seed, level)}  # type: ignore[typeddict-item]
        for (arm, step, loss, _, phase), by_seed in inside.items()
    ]


def _summary(by_seed: dict[str, list[float]], level: float) -> Json:
    means = {seed: statistics.fmean(shares) for seed, shares in by_seed.items()}
    half = half_width(list(means.values()), level)
    value = statistics.fmean(means.values())
    return {
        "value": value,
        "by_seed": means,
        "low": None if half is None else value - half,
        "high": None if half is None else value + half,
        "first": statistics.fmean(shares[0] for shares in by_seed.values()),
        "last": statistics.fmean(shares[-1] for shares in by_seed.values()),
        "measurements": min(len(shares) for shares in by_seed.values()),
    }


def half_width(values: Sequence[float], level: float) -> float | None:
    """Return half of the interval of a mean of equally weighted values; None for a single one."""
    if len(values) < 2:
        return None
    df = len(values) - 1
    return float(t_quantile((1 + level) / 2, df)) * statistics.stdev(values) / math.sqrt(len(values))

"""`megacode study next`: from the scores of a study to the blend to train next, or to the reasons why there is none.

One law is fitted to each metric over comparable points (`next_laws`), and the blend of the lowest weighted loss within
caps on passes is proposed. The best arm tried, the most even and the natural blend stand beside it. A blend that a gate
of `mixture` refuses is not shown at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megacode.base.errors import ConfigError, DataError
from megacode.mixture import designs, gates
from megacode.mixture.gates import Refusal
from megacode.mixture.laws import MixtureLaw, PredictionInterval, interval_of, resampled
from megacode.mixture.proposals import best_blend, optimum_intervals, rounded, unimax
from megacode.mixture.repetition import average_worth, next_worth
from megacode.study_report.forecasts import forecast_rows
from megacode.study_report.next_block import BlockWriter, merged, written
from megacode.study_report.next_laws import StudyLaws
from megacode.study_report.next_scales import other_scale
from megacode.study_report.next_target import Wanted
from megacode.study_report.results import StudyResults, read_results

_Json = dict[str, Any]
_SAME = 0.0005  # share of tokens; blends are written in tenths of a per cent
_LONGER = 1.5  # a target of so many times the arms' tokens is noted


def next_mixture(path: Path, wanted: Wanted = Wanted()) -> _Json:  # noqa: B008 (frozen)
    """Return the next mixture of a study as plain values for JSON; `refusals` says why it proposes none.

    Args:
        path: of the study file.
        wanted: what the blend is chosen for.

    Raises:
        ConfigError: the study, a metric or a level is wrong.
        DataError: nothing is scored, or score files cannot be compared.
        PlanError: an arm cannot be trained as it is written.
    """
    return next_of(read_results(path), wanted)


def next_of(results: StudyResults, wanted: Wanted = Wanted(), without: Sequence[str] = ()) -> _Json:  # noqa: B008
    """Return the next mixture of a study with its results; see `next_mixture`.

    Args:
        results: of the study.
        wanted: what the blend is chosen for.
        without: tasks that do not count.
    """
    document = _Proposer(StudyLaws(results, wanted, without), wanted).document()
    return {**document, "forecasts": forecast_rows(results, without)}


def law_of(results: StudyResults, without: Sequence[str] = ()) -> _Json | None:
    """Return what `megacode study next` says of a study by its defaults; None where nothing is scored.

    Where it would end with an error, such as scores that cannot be compared, the error's problems are the refusals.
    """
    if not any(one.files for one in results.trained.values()):
        return None
    try:
        return next_of(results, without=without)
    except (ConfigError, DataError) as error:
        problems = [
            (f"{problem.where}: {problem.what}" if problem.where else problem.what, problem.fix)
            for problem in error.problems
        ]
        return {"refusals": [vars(Refusal("no law", message, fix)) for message, fix in problems]}


def check_proposed(document: _Json) -> None:
    """Refuse, after the document was shown, if no blend could be proposed and no informative arms were asked for.

    Raises:
        ProposalError: with every reason.
    """
    if not document["informative"]:
        gates.refuse([Refusal(**one) for one in document["refusals"]], document["study"])


class _Proposer:
    def __init__(self, laws: StudyLaws, wanted: Wanted) -> None:
        self.laws, self.wanted = laws, wanted
        self.target, self.limits = laws.target, laws.target.limits
        self.blocks = BlockWriter(laws.grid.study, laws.like, laws.like.cell.place)
        self.drawn: dict[str, list[MixtureLaw]] = {}  # by metric, refits of other seeds: the slow part
        left = dict(zip(self.target.shares, self.limits.caps * self.target.budget, strict=True))
        self.refusals = [
            *laws.refusals,
            *other_scale(laws, wanted.target),
            *gates.caps_too_low(left, self.target.budget, wanted.max_passes),
        ]

    def document(self) -> _Json:
        """Return everything that is found."""
        laws = self.laws
        proposals = self._proposals()
        return {
            "study": laws.file,
            "like": laws.like.name,
            "levels": dict(laws.like.cell.levels),
            "tokens": laws.like.facts["tokens"],
            "budget": self.target.budget,
            "max_passes": self.wanted.max_passes,
            "pull": self.wanted.pull,
            "sources": self.target.rows(),
            "points": laws.point_rows(),
            "left_out": laws.left_out,
            "targets": laws.target_rows(),
            "refusals": [vars(refusal) for refusal in self.refusals],
            "proposals": proposals,
            "informative": self._informative(),
            "notes": self._notes(),
        }

    def _proposals(self) -> list[_Json]:
        """Return the proposals, the law's first; the gates that it fails are added to the refusals."""
        laws, best = self.laws, self.laws.best
        rows = [self._row("best arm", laws.blends[best], laws.points[best].name)]
        if not self.limits.possible:
            return rows
        rows += [
            self._row(kind, rounded(blend, self.limits.caps))
            for kind, blend in (("unimax", unimax(self.limits.caps)), ("natural", self.limits.natural))
        ]
        chosen = self._by_law()
        return rows if chosen is None or self.refusals else [chosen, *rows]

    def _by_law(self) -> _Json | None:
        laws, limits = self.laws, self.limits
        if laws.objective is None:
            return None
        exact = best_blend(laws.objective, limits, laws.blends)
        # What is trained is the rounded blend, so that is what must pass.
        blend = rounded(exact, limits.caps)
        best = laws.blends[laws.best]
        self.refusals += gates.badly_predicted(laws.deciding_fits)
        self.refusals += gates.outside_of_arms(blend, laws.blends, self.target.shares)
        # Where no arm keeps the caps, there is nothing that could be trained in place of the blend.
        if limits.kept(best):
            self.refusals += gates.no_clear_gain(laws.objective.gain(blend, best), laws.points[laws.best].name)
        if self.refusals:
            return None
        shares = optimum_intervals(laws.objective, limits, exact)
        named = zip(self.target.shares, shares, strict=True)
        return {**self._row("law", blend), "shares": {name: _interval(one) for name, one in named}}

    def _row(self, kind: str, blend: np.ndarray, arm: str | None = None) -> _Json:
        """Return one proposal; `arm` where it is one that was tried."""
        laws, target = self.laws, self.target
        passes = target.passes(blend)
        apart = [gates.distance(blend, other) for other in laws.blends]
        nearest = int(np.argmin(apart))
        predicted = self._predicted(blend)
        known = laws.objective is not None and predicted is not None and arm is None
        row = {
            "kind": kind,
            "arm": arm,
            "blend": target.spread(blend),
            "predicted": predicted,
            "gain": _interval(laws.objective.gain(blend, laws.blends[laws.best])) if known and laws.objective else None,
            "passes": target.named(passes),
            "worth": {name: average_worth(value) for name, value in target.named(passes).items()},
            "next_worth": {name: next_worth(value) for name, value in target.named(passes).items()},
            "above_cap": target.above(passes),
            "nearest": {"arm": laws.points[nearest].name, "distance": apart[nearest]},
        }
        # A second arm of the same blend would be refused as the same training.
        tried = apart[nearest] < _SAME
        return {**row, **({"block": None, "block_notes": []} if tried else self._block(kind, row))}

    def _block(self, kind: str, row: _Json) -> _Json:
        # Of a new arm, not of the mean of many: that is what will be measured.
        forecast = {
            metric: {key: float(f"{value:.5g}") for key, value in one["new"].items()}
            for metric, one in (row["predicted"] or {}).items()
        }
        block = self.blocks.block(f"next-{kind}", row["blend"], forecast)
        return {"block": written(block), "block_notes": self.blocks.notes(block)}

    def _predicted(self, blend: np.ndarray) -> _Json | None:
        """Return predicted metrics in their own unit and sign; None where the laws do not reach, or are not trusted."""
        laws = self.laws
        outside = gates.distance_to_hull(blend, laws.blends) > gates.HULL_TOLERANCE
        if laws.objective is None or outside or any(refusal.reason == "too few blends" for refusal in laws.refusals):
            return None
        rows = {}
        for one, fit in zip(laws.metrics, laws.objective.fits, strict=True):
            if fit.left_out_r2 < gates.LEAST_R2:
                continue
            if one.name not in self.drawn:
                self.drawn[one.name] = resampled(fit, [one.values[point.name] * one.sign for point in laws.points])
            seeds = interval_of(fit, self.drawn[one.name], blend)
            intervals = fit.predicted(blend), fit.predicted(blend, new=True), seeds
            mean, new, by_seeds = (each.negated() if each and one.sign < 0 else each for each in intervals)
            rows[one.name] = {**(_interval(mean) or {}), "new": _interval(new), "seeds_alone": _interval(by_seeds)}
        return rows or None

    def _informative(self) -> _Json | None:
        """Return the arms whose scores would make the laws best known, with a block to paste."""
        if not self.wanted.arms:
            return None
        laws, target = self.laws, self.target
        # A law that predicts badly would send the next arms to the wrong places.
        trusted = [fit.law for fit in laws.deciding_fits.values() if fit.left_out_r2 >= gates.LEAST_R2]
        # Within the caps: an arm that cannot be trained teaches nothing.
        offered = designs.candidates(self.limits.caps)
        form = trusted or designs.usual_laws(len(target.shares))
        blends = designs.d_optimal(laws.blends, offered, form, self.wanted.arms)
        blocks = [self.blocks.block(f"inform-{n}", target.spread(blend), {}) for n, blend in enumerate(blends, 1)]
        return {
            "by": "fitted laws" if trusted else "usual laws",
            "blends": [target.spread(blend) for blend in blends],
            "block": written(merged(blocks)) if blocks else "",
            "block_notes": [note for block in blocks for note in self.blocks.notes(block)],
        }

    def _notes(self) -> list[str]:
        laws, notes = self.laws, self.laws.notes()
        part = self.target.budget / laws.like.facts["tokens"]
        if part > _LONGER:
            notes.append(
                f"the target reads {part:.3g} times the arms' tokens: what is predicted is a run like the arms"
            )
        counts = {len(metric.values[point.name]) for metric in laws.metrics for point in laws.points}
        if counts == {1}:
            notes.append("one seed an arm: noise over seeds and what a law cannot express are not told apart")
        elif len(counts) > 1:
            notes.append(f"arms have {min(counts)} to {max(counts)} seeds, and count the same in the laws")
        return notes


def _interval(one: PredictionInterval | None) -> _Json | None:
    return None if one is None else {"value": one.value, "low": one.low, "high": one.high}

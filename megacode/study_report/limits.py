"""What a report does not show, and what is missing from it, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from megacode.base.units import counted, format_count
from megacode.capacity.costs import parameters
from megacode.statistics.words import seeds_vary
from megacode.study_report.results import StudyResults
from megacode.study_report.scored import Scored
from megacode.study_report.shapes import ArmRow, ModelRow, OverlapRow
from megacode.study_report.tasks import is_toss

_NAMED = 6  # longer lists are cut


def missing(results: StudyResults, models: Sequence[ModelRow], scored: Scored) -> list[str]:
    """Return what is not there yet."""
    lines = []
    declared = results.tree.grid.provisional
    if declared and any(model["state"] == "not trained" for model in models):
        message = "declared, and not there: states that were trained on them are not found without them"
        lines.append(f"{', '.join(declared)}: {message}")
    for state, verbs in (
        ("not trained", ("is not trained yet", "are not trained yet")),
        ("not scored", ("is trained and not scored yet", "are trained and not scored yet")),
        ("partly scored", ("lacks scores of some suites", "lack scores of some suites")),
    ):
        names = [f"{model['arm']} seed {model['seed']}" for model in models if model["state"] == state]
        if names:
            one, found_ = len(names) == 1, f"{len(names)} of {counted(len(models), 'model')}"
            lines.append(f"{found_} {verbs[0] if one else verbs[1]}: {_listed(names)}")
    lacking = {
        suite: sum(suite not in model["scores"] for model in models if model["scores"]) for suite in results.suites
    }
    lines += [
        f"{counted(count, 'scored model')} without scores of the suite {suite}"
        for suite, count in lacking.items()
        if count
    ]
    # Arms that share a stretch share its score files: each is named once.
    strange = dict.fromkeys(line for one in results.trained.values() for line in one.strange)
    return [*lines, *strange, *scored.missing]


def limits(results: StudyResults, arms: Sequence[ArmRow], overlaps: Sequence[OverlapRow], scored: Scored) -> list[str]:
    """Return what the report does not show."""
    return [
        *_of_seeds(results, scored),
        *_of_scale(results),
        *_of_sharing(scored),
        *_of_order(results, scored),
        *_of_suites(results, scored, overlaps),
        *(f"{arm['name']}: {flag}." for arm in arms for flag in arm["flags"]),
    ]


def _of_seeds(results: StudyResults, scored: Scored) -> Iterator[str]:
    count = len(results.study.seeds)
    about = Counter(row["about"] for row in scored.comparisons if row["method"] == "t")
    if count == 1:
        yield "One seed: differences are those of these models. Another seed of the same recipes may turn them around."
    elif about["models"]:
        yield "Some arms have one scored seed: their differences are those of these models, not of these recipes."
    if count > 1 and results.study.vary != "both":
        sentence = seeds_vary(results.study.vary)
        yield f"{sentence[0].upper()}{sentence[1:]}."
    if 1 < count < 4 and about["recipes"]:
        yield f"{count} seeds an arm: the spread over seeds is itself an estimate, so intervals are wide."
    exact = [row for row in scored.comparisons if row["method"] == "exact"]
    if exact:
        message = f"{len(exact)} of {len(scored.comparisons)} comparisons have hardly an item that differs"
        yield f"{message}: an exact test judges them, without an interval, and they are about these models alone."


def _of_scale(results: StudyResults) -> Iterator[str]:
    shown = " and ".join(format_count(size) for size in sorted(_sizes(results)))
    yield f"The models have {shown} parameters. What holds here need not hold at another size or budget."


def _sizes(results: StudyResults) -> set[int]:
    return {parameters(cell.plan.config.model, cell.plan.vocab_size) for cell in results.tree.grid.cells}


def _of_sharing(scored: Scored) -> Iterator[str]:
    shared = {row["seed_spread_from"] for row in scored.comparisons}
    if "arms of one trunk" in shared:
        yield (
            "Arms of one trunk share its luck. Their differences are precise about what comes after it, and say "
            "nothing about other trunks."
        )


def _of_order(results: StudyResults, scored: Scored) -> Iterator[str]:
    proven = [proof for proof in results.proofs if proof.equal and proof.claim.exposure]
    named = ", ".join(sorted({cell.name for proof in proven for cell in proof.cells}))
    if proven:
        yield f"Arms differ in order alone only where it is proven ({named}). All others differ in amounts as well."
    elif scored.comparisons:
        yield "No arms are proven to read equal amounts, so order and amount are confounded in every comparison."
    failed = [proof for proof in results.proofs if not proof.equal]
    for proof in failed:
        yield f"{', '.join(cell.name for cell in proof.cells)} do not match as the study claims."


def _of_suites(results: StudyResults, scored: Scored, overlaps: Sequence[OverlapRow]) -> Iterator[str]:
    if results.suites:
        yield f"Scores are those of the suite{'s' * (len(results.suites) > 1)} {', '.join(results.suites)}, no others."
    small = min(_sizes(results))
    weak = dict.fromkeys(row["title"].partition(",")[0] for row in scored.metrics if is_toss(row["metric"], small))
    if weak:
        yield f"{', '.join(weak)} hardly rank corpora better than a coin toss at this size, as published."
    for row in scored.metrics:
        if row["missing"]:
            yield f"{row['metric']} is a mean without {', '.join(row['missing'])}, which not all arms have."
    documents = [document for one in results.trained.values() for document in one.documents.values()]
    limited = sorted({int(limit) for document in documents if (limit := document["settings"].get("limit")) is not None})
    if limited:
        yield f"Tasks were cut to {' or '.join(str(limit) for limit in limited)} item{'s' * (limited != [1])}."
    if scored.scores and not overlaps:
        yield "Whether the questions occur in the training data was not checked."
    # Per task: over all tasks together a small contaminated one would not show.
    worst = max((row["hits"] / row["items"] for row in overlaps if row["items"]), default=0.0)
    if worst > 0:
        yield f"Up to {100 * worst:.1f} % of a task's items occur verbatim in what an arm read; see the table by arm."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

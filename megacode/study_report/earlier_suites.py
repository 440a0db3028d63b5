"""Names that a study's earlier suites have: a later suite's task or mean of the same name is called `SUITE.NAME`.

They depend on the study alone, and not on what is scored so far. Otherwise `mean/total` would be one suite's today and
another's tomorrow.
"""

from __future__ import annotations

from pathlib import Path

from megacode.base.errors import MegacodeError
from megacode.eval.suites import Suite, load_suite
from megacode.planning.suite import score_name
from megacode.study_report.results import StudyResults

Names = tuple[set[str], set[str]]  # of tasks, and of means over tasks


def earlier_names(results: StudyResults) -> dict[str, Names]:
    """Return by suite the names of tasks and means that the suites before it have."""
    declared = {score_name(name): name for name in results.study.suites}
    names_by_suite: dict[str, Names] = {}
    tasks: set[str] = set()
    means: set[str] = set()
    for suite in results.suites:
        names_by_suite[suite] = (set(tasks), set(means))
        own_tasks, own_means = _names(results, suite, declared.get(suite))
        tasks |= own_tasks
        means |= own_means
    return names_by_suite


def _names(results: StudyResults, suite: str, declared: str | None) -> Names:
    """Return the names of a suite: those of its definition, and those in score files."""
    documents = [one.documents[suite] for one in results.trained.values() if suite in one.documents]
    tasks = {task for document in documents for task in document["scores"]}
    means = {mean for document in documents for mean in document.get("mean_parts") or {}}
    # Definition and score files together: an open suite's groups are known by its scores alone.
    known = None if declared is None else _load(declared, Path(results.study.directory) / "items" / suite)
    return (tasks | set(known.tasks), means | {*known.categories, *known.means}) if known else (tasks, means)


def _load(suite: str, items: Path) -> Suite | None:
    try:
        return load_suite(suite, None, items)
    except MegacodeError:  # a user's file that is elsewhere now, or items that are not made yet
        return None


def told_metric(metric: str, suite: str, earlier: Names) -> str:
    """Return the name of a suite's metric among those of all suites: `mean/total` may be `mean/SUITE.total`."""
    task, _, name = metric.partition("/")
    tasks, means = earlier
    if task == "mean":
        return f"mean/{suite}.{name}" if name in means else metric
    return f"{suite}.{metric}" if task in tasks else metric

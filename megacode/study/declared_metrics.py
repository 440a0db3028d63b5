"""Check the metrics that a study names in advance, before anything is trained for them."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from megacode.base.errors import ConfigError, Problem
from megacode.config.suggestions import did_you_mean
from megacode.planning.suite import score_name
from megacode.study.grid import Grid
from megacode.study.schema import Study


def check_metrics(grid: Grid, path: Path) -> None:
    """Refuse metrics of `compare` and of forecasts that no suite of the study can have.

    Args:
        grid: of the study.
        path: of its file, for messages.

    Raises:
        ConfigError: with every such metric.
    """
    named = list(_named(grid.study))
    if not named or not grid.study.suites:
        return
    # Heavy to import, and a study that declares nothing needs none of it.
    from megacode.eval.known_metrics import KnownMetrics, known_metrics

    configs = [cell.plan.config for cell in grid.cells]
    tasks: set[str] = set()
    means: set[str] = set()
    metrics: list[KnownMetrics] = []
    for suite in grid.study.suites:
        own = known_metrics(suite, configs)
        metrics.append(own.renamed(score_name(suite), tasks, means))
        tasks |= {*own.tasks}
        means |= {*own.means}
    known = [name for one in metrics for name in one.names()]
    problems = [
        Problem(_what(metric, grid.study), f"{path.name}: {where}", _fix(metric, known))
        for where, metric in named
        if not any(one.may_have(metric) for one in metrics)
    ]
    if problems:
        raise ConfigError(problems=problems)


def _named(study: Study) -> Iterator[tuple[str, str]]:
    for key in ("primary", "secondary"):
        yield from ((f"compare.{key}[{number}]", name) for number, name in enumerate(getattr(study.compare, key)))
    for arm, settings in study.arms.items():
        yield from ((f"arms.{arm}.forecast", metric) for metric in settings.forecast)


def _what(metric: str, study: Study) -> str:
    if "/" not in metric:
        return f"{metric!r} is not a metric of the form TASK/METRIC or mean/NAME"
    return f"there is no metric {metric!r} in the suites {', '.join(study.suites)}"


def _fix(metric: str, known: list[str]) -> str:
    # Without a similar name: the metrics of its task, or the means. Suites have dozens of tasks.
    if not get_close_matches(metric, known):
        task = metric.partition("/")[0]
        known = [name for name in known if name.startswith(f"{task}/")] or [one for one in known if "mean/" in one]
    return did_you_mean(metric, known)

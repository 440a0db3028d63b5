"""What metrics a suite has, as far as its own definition tells. Needs neither lm-eval nor its data sets.

What a task of lm-eval is scored by stands in lm-eval alone, and a name under `tasks` may be a group of tasks. So such
names are never called wrong; means, texts, true answers and the suites that megacode makes itself are known fully.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from megacode.config.evaluate import MADE_SUITES
from megacode.config.run import RunConfig
from megacode.data.demo_items import SOURCES
from megacode.data.heldout_items import source_names
from megacode.eval.suites import METRIC, load_suite

# As in tasks/demo/*.yaml, which only lm-eval can read.
_ENDINGS = ("acc", "acc_norm", "acc_mutual_info")


@dataclass(frozen=True)
class KnownMetrics:
    """The metrics of a suite.

    Attributes:
        means: names of means over tasks.
        tasks: by name the metrics of a task; None: lm-eval's own.
        closed: there are no other tasks.
    """

    means: Collection[str]
    tasks: Mapping[str, Collection[str] | None]
    closed: bool = True

    def renamed(self, suite: str, tasks: Collection[str], means: Collection[str]) -> KnownMetrics:
        """Return the metrics with names that earlier suites have as `SUITE.NAME`, as a study's report calls them."""
        return KnownMetrics(
            {f"{suite}.{name}" if name in means else name for name in self.means},
            {f"{suite}.{name}" if name in tasks else name: own for name, own in self.tasks.items()},
            self.closed,
        )

    def may_have(self, metric: str) -> bool:
        """Return whether `TASK/METRIC` or `mean/NAME` is one of them, or may be."""
        task, _, name = metric.partition("/")
        if task == "mean":
            return name in self.means
        own = self.tasks.get(task, ())
        return name in own if own else bool(name) and (own is None or not self.closed)

    def names(self) -> list[str]:
        """Return those whose whole names are known."""
        tasks = [f"{task}/{metric}" for task, own in self.tasks.items() for metric in own or ()]
        return [*(f"mean/{name}" for name in self.means), *tasks]


def known_metrics(suite: str, configs: Sequence[RunConfig]) -> KnownMetrics:
    """Return the metrics of a suite.

    Args:
        suite: the name of a shipped one, or the path of a YAML file.
        configs: of the runs that it scores; the made suites ask about their sources.

    Raises:
        ConfigError: there is no such suite, or its file is wrong.
    """
    if suite in MADE_SUITES:
        return _made(suite, source_names(configs))
    read = load_suite(suite, None)
    # A task in a category is one task: a group has no metric of its own that could count.
    single = {task for tasks in read.categories.values() for task in tasks}
    own = (METRIC,) if read.gold_answers is not None else None
    tasks = {**dict.fromkeys(read.tasks, own), **dict.fromkeys(read.texts, (METRIC,))}
    return KnownMetrics({*read.categories, *read.means}, tasks, single >= {*read.tasks})


def _made(suite: str, sources: Sequence[str]) -> KnownMetrics:
    if suite == "heldout":
        return KnownMetrics({METRIC}, {f"heldout_{name}": (METRIC,) for name in sources})
    asked = [name for name in SOURCES if name in sources]
    tasks: dict[str, Collection[str]] = {f"demo_bits_{name}": (METRIC,) for name in asked}
    tasks |= {f"demo_endings_{name}": _ENDINGS for name in asked}
    tasks |= {"demo_next_word_code": ("exact_match",)} if "code" in asked else {}
    return KnownMetrics({METRIC, "endings"}, tasks)

"""A suite's questions with their true answers; no model is needed.

A task has a gold answer if it is a multiple choice, or if its suite scores true answers (`gold_answers`), which name
what a free answer should be. The target of other tasks may be a test or a regular expression, and is no text to learn.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError, DataError, Problem
from megacode.base.files import digest
from megacode.eval.gold_answers import gold_task
from megacode.eval.offline import surroundings
from megacode.eval.suites import Suite, load_suite
from megacode.eval.task_loading import load_tasks

log = logging.getLogger(__name__)

_CHOICE = "multiple_choice"


@dataclass(frozen=True)
class GoldItem:
    """A question and its true answer.

    Attributes:
        number: its place in the task.
        question: what precedes the answer, solved examples included; may be empty.
        answer: with what separates it from the question.
        cluster: what items of one passage share; None: it stands alone.
    """

    number: int
    question: str
    answer: str
    cluster: str | None


@dataclass(frozen=True)
class AskedTask:
    """The items of one task that are used, and how many it has."""

    name: str
    items: Sequence[GoldItem]
    of: int


def read_suite(suite: str, checkpoint: Path, tasks_dir: Path | None) -> Suite:
    """Return a suite, scored by true answers.

    Args:
        suite: a shipped suite's name, or a YAML file.
        checkpoint: whose run holds the items of the suites `demo` and `heldout`.
        tasks_dir: directory of those items, instead.

    Raises:
        ConfigError: there is no such suite.
    """
    loaded = load_suite(suite, checkpoint, tasks_dir)
    # Nothing is generated here, so how answers would be sampled does not matter.
    return replace(loaded, samples={}) if loaded.gold_answers is None else loaded


def gold_tasks(suite: Suite, most: int, without: Sequence[str] = ()) -> list[AskedTask]:
    """Return the items of all tasks of a suite, whose data are in the local cache.

    Args:
        suite: of `read_suite`.
        most: items of a task, spread over all that it has.
        without: tasks to leave out.

    Raises:
        ConfigError: an unknown task, or tasks without gold answers: all of them at once.
        DataError: the data of a task are not in the cache.
    """
    with surroundings(suite.offline, suite.items is not None, verbose=False):
        # Nothing is generated here, so tasks that run code may be loaded.
        tasks, _ = load_tasks(suite, run_code=True, without=tuple(without))
        _refuse_without_gold(suite, tasks)
        if suite.gold_answers is None:
            tasks = {name: gold_task(task, None) for name, task in tasks.items()}
        return [_items(name, task, most, suite.clusters.get(name)) for name, task in tasks.items()]


def _refuse_without_gold(suite: Suite, tasks: Mapping[str, Any]) -> None:
    names = [name for name, task in tasks.items() if name in suite.texts or not _has_gold(suite, task)]
    if not names:
        return
    # One fix for all of them, ready to be copied into the command.
    fix = "exclude them: " + " ".join(f"--without {name}" for name in names)
    if suite.gold_answers is None:
        fix += ", or name a suite of true answers, such as to-code-gold"
    problems = [Problem("it has no gold answer: it is no multiple choice", f"task {name}") for name in names[:-1]]
    raise ConfigError(problems=[*problems, Problem("it has no gold answer", f"task {names[-1]}", fix)])


def _has_gold(suite: Suite, task: Any) -> bool:
    return suite.gold_answers is not None or task.OUTPUT_TYPE == _CHOICE


def _items(name: str, task: Any, most: int, cluster: str | None) -> AskedTask:
    count = len(task.eval_docs)
    used = min(most, count)
    # Spread, as held-out windows are: neighbours often share a passage or a subject.
    numbers = [number * count // used for number in range(used)]
    try:
        task.build_all_requests(samples=numbers, rank=0, world_size=1)
    except (OSError, MemoryError):
        # A disk or the memory is at fault then, not the task.
        raise
    except Exception as error:  # a task's own templates and code, and the libraries below them
        message = f"its questions cannot be made: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(message, f"task {name}", f"fix it, or exclude it: --without {name}") from error
    items = [_item(name, instance, cluster) for instance in task.instances]
    # What separates question and answer is no answer.
    if empty := [item.number for item in items if not item.answer.strip()]:
        message = f"{len(empty)} of {len(items)} items have no gold answer, the first is item {empty[0]}"
        raise DataError(message, f"task {name}", f"its test data may be published without answers: --without {name}")
    return AskedTask(name, items, count)


def _item(task: str, instance: Any, cluster: str | None) -> GoldItem:
    question, answer = instance.args
    if cluster is not None and cluster not in instance.doc:
        fix = f"its fields are {', '.join(instance.doc)}"
        raise ConfigError(f"the task's documents have no field {cluster!r}", f"clusters.{task}", fix)
    # Passages are long, and only whether two are equal matters.
    passage = None if cluster is None else digest(str(instance.doc[cluster]))[:16]
    return GoldItem(int(instance.doc_id), str(question), str(answer), passage)

"""Load a suite's lm-eval tasks one by one, so that all missing data sets are reported together."""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError, DataError, Problem
from megacode.eval.few_shot import give_examples
from megacode.eval.gold_answers import gold_task
from megacode.eval.manual_datasets import cache_dir, fetch_quac
from megacode.eval.sampled_answers import sampled_task
from megacode.eval.suites import Suite
from megacode.eval.text_tasks import text_task

log = logging.getLogger(__name__)

RUN_CODE = "it runs code that the model writes: allow it with --run-generated-code"
_ASKED_OUT = "left out on request"
_PREFETCH = (
    "scoring never downloads: on a machine with network run `megacode evaluate --prefetch` with this --suite; "
    "--cache or HF_HOME sets another cache"
)
_LEAVE_OUT = "exclude it with --without, or fix its file"
_TRY_SECONDS = 10.0


def load_tasks(
    suite: Suite, run_code: bool, without: tuple[str, ...] = (), lacking: str = _PREFETCH
) -> tuple[dict[str, Any], dict[str, str]]:
    """Load the tasks of a suite with their data.

    Args:
        suite: the suite.
        run_code: whether tasks may run code that the model writes; others are loaded without such tasks.
        without: tasks to exclude.
        lacking: the fix to suggest for data that is not in the cache.

    Returns:
        lm-eval's task objects by name, groups and tags expanded; and the reason for each excluded task, by name.

    Raises:
        ConfigError: for an unknown task, or if none is left.
        DataError: with every task whose data cannot be loaded, and how to fetch it.
    """
    manager = _manager(suite)
    run_code = run_code or suite.gold_answers is not None  # true answers are scored, and no code is written
    # Names first: a typo should not wait for data sets to load.
    _check_names(suite, manager, without)
    left_out = dict.fromkeys(without, _ASKED_OUT)
    left_out |= {name: RUN_CODE for name in suite.tasks if not run_code and _runs_code(manager, name)}
    specs: list[Any] = [name for name in suite.tasks if name not in left_out]
    # lm-eval takes task descriptions as well as names.
    specs += [text_task(name, path) for name, path in suite.texts.items() if name not in left_out]
    tasks = _loaded(manager, specs, lacking)
    # Tasks inside groups and tags show only now whether they run code.
    for name in [name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False) and not run_code]:
        left_out[name] = RUN_CODE
        del tasks[name]
    for name, why in left_out.items():
        log.warning("excluding the task %s: %s", name, why)
    if not tasks:
        raise ConfigError("no task is left to run", f"suite {suite.name}", "; ".join(sorted(set(left_out.values()))))
    give_examples(tasks, suite, left_out)
    return _as_scored(tasks, suite, left_out), left_out


def _loaded(manager: Any, specs: Iterable[Any], lacking: str) -> dict[str, Any]:
    """Return lm-eval's task objects with their data, or name every task whose data cannot be loaded."""
    tasks: dict[str, Any] = {}
    problems: list[Problem] = []
    own: list[Problem] = []
    for spec in specs:
        name = spec if isinstance(spec, str) else spec["task"]
        try:
            # One load call per task: a call for all would stop at the first missing data set.
            tasks.update(manager.load([spec])["tasks"])
        except DataError as error:  # of files that a user gave or copied: no download helps
            own += error.problems
        except (OSError, ValueError) as error:  # the Hub's and datasets' errors, those of offline mode among them
            problems.append(_unloaded(name, error))
        except Exception as error:  # what a task's own code raises
            own.append(Problem(f"it cannot be loaded: {type(error).__name__}: {error}", f"task {name}", _LEAVE_OUT))
    if problems:
        problems.append(Problem("data sets are missing from this cache", str(cache_dir()), lacking))
    if own or problems:
        raise DataError(problems=[*own, *problems])
    return tasks


def _as_scored(tasks: Mapping[str, Any], suite: Suite, left_out: Collection[str]) -> dict[str, Any]:
    """Return the tasks with what the suite scores: true answers, sampled answers, or the tasks' own metrics."""
    if lost := [name for name in suite.samples if name not in {*tasks, *left_out}]:
        raise ConfigError(f"it has no task {lost[0]!r} to sample", f"suite {suite.name}: samples", "add it to `tasks`")
    if suite.gold_answers is not None:
        gold = suite.gold_answers
        return {name: task if name in suite.texts else gold_task(task, gold.get(name)) for name, task in tasks.items()}
    sampled = {name: sampled_task(tasks[name], how) for name, how in suite.samples.items() if name in tasks}
    return {**tasks, **sampled}


def prefetch(suite: Suite, no_network: str) -> list[str]:
    """Download the data of all tasks of a suite into the cache.

    Args:
        suite: the suite.
        no_network: why the network cannot be reached; empty if it can. If it cannot, only the cache is checked.

    Returns:
        The tasks' names.

    Raises:
        DataError: with every task whose data could not be loaded.
    """
    # `datasets` cannot load it, see `manual_datasets`.
    if "quac" in suite.tasks and not no_network:
        try:
            fetch_quac()
        except OSError as error:
            log.warning("QuAC's file cannot be downloaded: %s", error)
    # The tasks are loaded as for scoring, so what succeeds here is found there.
    lacking = (
        no_network
        or "the hub answers, but these could not be downloaded; check whether the network lets all of them through"
    )
    tasks, _ = load_tasks(suite, run_code=True, lacking=lacking)
    return list(tasks)


def network_problem() -> str:
    """Return why the data sets' hub cannot be reached, after one attempt of a few seconds; empty if it can."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        # Asked once: each library would otherwise retry for minutes, task by task.
        urllib.request.urlopen(hub, timeout=_TRY_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # it answers; whether a data set is available shows when it is requested
    except (OSError, ValueError) as error:
        return f"{hub} cannot be reached from here: {error}"
    return ""


def _manager(suite: Suite) -> Any:
    from lm_eval.tasks import TaskManager

    # The shipped task files read the directory of their items from it: the same files serve every run.
    metadata: Any = {"items": str(suite.items)} if suite.items else None
    places: Any = [str(place) for place in suite.places()]
    return TaskManager(include_path=places, include_defaults=suite.defaults, metadata=metadata)


def _check_names(suite: Suite, manager: Any, without: tuple[str, ...]) -> None:
    where = f"suite {suite.name}"
    names = [*suite.tasks, *suite.texts]
    for task in without:
        if task not in names:
            close = get_close_matches(task, names, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"its tasks are {', '.join(names)}"
            raise ConfigError(f"it has no task {task!r} to exclude", where, fix)
    for task in suite.tasks:
        if task not in manager.all_tasks and not Path(task).is_file():
            close = get_close_matches(task, manager.all_tasks, n=1)
            fix = f"did you mean {close[0]!r}?" if close else "use a task of lm-eval, or set include_path"
            raise ConfigError(f"there is no task {task!r}", where, fix)


def _runs_code(manager: Any, name: str) -> bool:
    """Return whether a task's YAML declares that it runs code; for groups and tags that is known only after loading."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index.get(name)
    path = entry.yaml_path if entry is not None else Path(name)
    return path is not None and bool(load_yaml(path, resolve_func=False, recursive=True).get("unsafe_code", False))


def _unloaded(name: str, error: Exception) -> Problem:
    reason = " ".join(str(error).split())[:300]
    return Problem(f"a task's data cannot be loaded: {reason}", f"task {name}")

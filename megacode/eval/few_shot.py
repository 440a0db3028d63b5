"""Solved examples at the beginning of a task's prompt: how many, and which."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from random import Random
from typing import Any

from megacode.base.errors import ConfigError, Problem
from megacode.eval.suites import Suite

_SEED = 1234  # of the draw of examples


def give_examples(tasks: Mapping[str, Any], suite: Suite, left_out: Collection[str]) -> None:
    """Set the number of solved examples of each task: the suite's, or else the task's own, or else none.

    Args:
        tasks: lm-eval's task objects by name; they are changed.
        suite: its `few_shot` maps names, or patterns of names such as `mmlu_*`, to numbers.
        left_out: names of tasks that the suite has and that are not asked.

    Raises:
        ConfigError: a name matches no task, two match one task, or a task has too few examples to show.
    """
    where = f"suite {suite.name}: few_shot"
    problems = []
    for pattern in suite.few_shot:
        if not any(fnmatchcase(name, pattern) for name in (*tasks, *left_out)):
            fix = f"its tasks are {', '.join(list(tasks)[:20])}"
            problems.append(Problem(f"no task is called {pattern!r}", where, fix))
    for name, task in tasks.items():
        patterns = [pattern for pattern in suite.few_shot if fnmatchcase(name, pattern)]
        if len(patterns) > 1:
            problems.append(Problem(f"two entries match {name}: {', '.join(patterns)}", where, "keep one of them"))
        count = suite.few_shot[patterns[0]] if patterns else task.get_config("num_fewshot") or 0
        if patterns and count > (most := _most(task)):
            fix = "show fewer; 0 asks without examples"
            problems.append(Problem(f"{name} has {most} solved examples to show, not {count}", where, fix))
        task.set_config(key="num_fewshot", value=count)
        if count:
            _same_for_all(task)
    if problems:
        raise ConfigError(problems=problems)


def _most(task: Any) -> int:
    """Return how many examples a task can show; 0 if they would be the questions that it asks."""
    settings, config = task.fewshot_cfg, task.config
    if settings.split is None and settings.samples is None:
        # lm-eval falls back to the questions themselves, with a warning alone.
        asked = config.test_split or config.validation_split
        if asked == (config.training_split or config.validation_split or config.test_split):
            return 0
    return len(task.sampler.df)


def _same_for_all(task: Any) -> None:
    """Show the same examples before every question of a task.

    lm-eval draws them from one generator, question after question: then they depend on which questions a rank asks.
    """
    from lm_eval.api.samplers import ContextSampler, FirstNSampler

    if type(task.sampler) is ContextSampler:  # others have a fixed list
        task.sampler = FirstNSampler(Random(_SEED).sample(list(task.sampler.df), len(task.sampler.df)))

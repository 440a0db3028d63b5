"""pass@k: how likely one of k sampled answers is right, estimated from n answers to each question.

With c right answers of n, the estimate 1 - C(n - c, k) / C(n, k) has no bias; taking the best of k answers drawn once
has the same mean and a larger spread. Source: Chen et al., Evaluating Large Language Models Trained on Code,
arXiv:2107.03374, section 2.1.
"""

from __future__ import annotations

from functools import cache
from math import comb
from typing import Any

from megacode.base.errors import ConfigError
from megacode.eval.suites import AnswerSampling

_PASSED = "pass_at_1"


def pass_at_k(passed: int, n: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from `passed` right answers of `n`; k is at most n."""
    # comb is 0 where fewer than k answers are wrong: then any k answers hold a right one.
    return 1.0 - comb(n - passed, k) / comb(n, k)


def sampled_task(task: Any, sampling: AnswerSampling) -> Any:
    """Return a task that samples n answers to each question, scored by pass@k.

    Args:
        task: lm-eval's task object with its data, scored by `pass_at_1`; it stays as it is.
        sampling: how answers are sampled.

    Returns:
        A task with a metric `pass_at_K` for each k.

    Raises:
        ConfigError: the task has another metric: whether an answer passes is not known.
    """
    if list(task.aggregation()) != [_PASSED]:
        fix = f"sample tasks that are scored by {_PASSED}, such as humaneval_plus"
        raise ConfigError(f"it is scored by {', '.join(task.aggregation())}", f"samples.{task.config.task}", fix)
    return _sampled_class()(task, sampling)


@cache
def _sampled_class() -> Any:
    """Return the class of such tasks; importing lm-eval takes seconds."""
    from lm_eval.api.metrics import mean
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.filters import build_filter_ensemble

    class SampledTask(ConfigurableTask):
        def __init__(self, task: Any, sampling: AnswerSampling) -> None:
            # Not the base class's own: it would load the data again.
            self.__dict__.update(vars(task))
            self._task, self._sampling = task, sampling
            self.VERSION = f"{task.VERSION}, {sampling}"
            settings = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
            self.set_config(key="generation_kwargs", value=settings, update=True)
            self.set_config(key="repeats", value=sampling.n)
            self._filters: Any = [build_filter_ensemble("samples", [("take_first_k", {"k": sampling.n})])]

        def process_results(self, doc: Any, results: Any) -> dict[str, float]:
            (answers,) = results
            passed = round(sum(self._task.process_results(doc, [answer])[_PASSED] for answer in answers))
            return {f"pass_at_{k}": pass_at_k(passed, self._sampling.n, k) for k in self._sampling.k}

        def aggregation(self) -> dict[str, Any]:
            return dict.fromkeys((f"pass_at_{k}" for k in self._sampling.k), mean)

        def higher_is_better(self) -> dict[str, bool]:
            return dict.fromkeys((f"pass_at_{k}" for k in self._sampling.k), True)

    return SampledTask

"""The items of a suite, for corpora that are to be free of them; nothing is scored and no model is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from megacode.corpus.decontaminate import Benchmark, items_made_in
from megacode.data.demo_items import INDEX
from megacode.data.items import rows_digest, task_items
from megacode.eval.offline import surroundings
from megacode.eval.suites import load_suite
from megacode.eval.task_loading import load_tasks


def suite_items(suite: str | Path) -> Benchmark:
    """Return the items of a suite whose data are in the local cache.

    Args:
        suite: a shipped suite's name, a suite's YAML file, or the directory of items that were made for the suite
            `demo` or `heldout`, such as RUN/eval/items/demo.

    Raises:
        ConfigError: for an unknown suite or task.
        DataError: if the data of a task are not in the cache, or made items are incomplete.
    """
    if (Path(suite) / INDEX).is_file():
        return items_made_in(Path(suite), Path(suite).name)
    # True answers are wanted as the tasks have them, whatever the suite's own scoring is.
    loaded = replace(load_suite(suite, None), gold_answers=None, few_shot={}, samples={})
    with surroundings(loaded.offline, False, verbose=False), _metrics_not_fetched():
        # Tasks that run code are loaded for their items; nothing is run.
        tasks, _ = load_tasks(loaded, run_code=True)
        items, digests = [], {}
        for name, task in tasks.items():
            # Examples in a prompt belong to other items.
            task.set_config(key="num_fewshot", value=0)
            items += task_items(name, task)
            digests[name] = rows_digest(task.eval_docs)
    return Benchmark(loaded.name, tuple(items), digests)


@contextmanager
def _metrics_not_fetched() -> Iterator[None]:
    """Let tasks load whose modules fetch a metric from the Hub and try it on code: items need none."""
    import evaluate

    load, absent = evaluate.load, _AbsentMetric()
    evaluate.load = lambda *_, **__: absent
    try:
        yield
    finally:
        evaluate.load, absent.is_loading = load, False


class _AbsentMetric:
    """Stands in a task's module for a metric; it gives no result, and none at all once the items are read."""

    def __init__(self) -> None:
        self.is_loading = True

    def compute(self, **_: Any) -> tuple[dict[str, float], dict[str, float]]:
        # lm-eval keeps a task's module: whoever scores with it later must not take this for a result.
        if not self.is_loading:
            raise RuntimeError("this process has loaded the task for its items; score it in another one")
        return {}, {}

"""Run one task on one model with lm-eval: load the model, score items, and aggregate a task's scores."""

from __future__ import annotations

import logging
import random
import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.eval.hf_model import open_model
from megacode.eval.scores import beginning_of_texts, item_lines
from megacode.eval.truncation import counting_cuts

log = logging.getLogger(__name__)

_SEED = 1234  # lm-eval's own
_TOO_LONG = {
    "_loglikelihood_tokens": "an answer is longer than the model's context of {} tokens",
    "generate_until": "its answers leave no room for a question in the model's context of {} tokens",
}


def load_model(hf_dir: Path, batch_size: int, device: str) -> Any:
    """Return lm-eval's wrapper of a model in transformers: fp32 on CPU, its saved dtype on a GPU.

    Raises:
        CheckpointError: if transformers cannot load it.
    """
    model, tokenizer = open_model(hf_dir, device)
    settings = {"tokenizer": tokenizer, "batch_size": batch_size, "device": device}
    return counting_cuts("hf")(pretrained=model, **settings, **beginning_of_texts(hf_dir, tokenizer))


def run_items(model: Any, name: str, task: Any, items: range, cluster: str | None = None) -> list[dict[str, Any]]:
    """Run some items of a task as lm-eval's `simple_evaluate` does, without its 2 s of collecting versions.

    Args:
        model: lm-eval's wrapper.
        name: the task's name.
        task: lm-eval's task object.
        items: numbers of the items; may be empty.
        cluster: the field of the task's documents that items of one passage share.

    Returns:
        Their `item_lines`.

    Raises:
        DataError: if an item does not fit into the model's context.
    """
    import numpy as np
    import torch
    from lm_eval.evaluator import evaluate as run

    if not items:
        return []
    # The seeds of lm-eval's own command line, so that scores can be compared with published ones.
    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)
    samples: Any = {name: items}  # a range: lm-eval tests every item for membership
    try:
        results = run(
            model, {"tasks": {name: task}}, samples=samples, bootstrap_iters=0, confirm_run_unsafe_code=True
        )  # fmt: skip
    except AssertionError as error:
        # lm-eval asserts that texts fit; the function that failed tells which kind of item it was.
        message = _TOO_LONG.get(traceback.extract_tb(error.__traceback__)[-1].name)
        if message is None:
            message = f"lm-eval fails on it: {error}"
        fix = "score a model with a longer train.seq_length, or exclude the task: --without"
        raise DataError(message.format(model.max_length), f"task {name}", fix) from error
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # a task's own templates and code, and the libraries below them
        log.debug("lm-eval failed", exc_info=True)
        message = f"lm-eval fails on it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(message, f"task {name}", "exclude the task with --without, or fix it") from error
    assert results is not None, "each rank runs its items as if alone"
    samples = results["samples"][name]
    return item_lines(name, samples, [model.cut_of(sample["arguments"]) for sample in samples], cluster)


def aggregate(task: Any, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return a task's scores over all items, as lm-eval aggregates them, by `metric,filter`."""
    from lm_eval.api.metrics import mean

    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for line in lines:
        # Values of all ranks together: means of means would weigh ranks, not items.
        for metric in line["metrics"]:
            values[metric, line["filter"]].append(line[metric])
    return {
        f"{metric},{name}": task.aggregation().get(metric, mean)(numbers) for (metric, name), numbers in values.items()
    }

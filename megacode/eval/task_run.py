"""One model, one task: the model as lm-eval takes it, some items' results, and a task's scores from all of them."""

from __future__ import annotations

import logging
import random
import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, DataError
from megacode.eval.scores import is_export, item_lines
from megacode.eval.truncation import counting_cuts

log = logging.getLogger(__name__)

_SEED = 1234  # lm-eval's own
_TOO_LONG = {
    "_loglikelihood_tokens": "an answer is longer than the model's context of {} tokens",
    "generate_until": "the answers it asks for leave no room for a question in the model's context of {} tokens",
}


def load_model(hf_dir: Path, batch_size: int, device: str) -> Any:
    """Return lm-eval's wrapper of a model: fp32 on CPU, the type it was saved in on a GPU.

    Raises:
        CheckpointError: if transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = "float32" if device == "cpu" else "auto"
    try:
        model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
    except Exception as error:  # a damaged directory makes its parsers raise errors of any kind
        reason = " ".join(str(error).split())[:300]
        fix = "export it again with `megacode convert to-hf`"
        raise CheckpointError(f"transformers cannot load it: {reason}", str(hf_dir), fix) from error
    beginning: dict[str, Any] = {}
    if is_export(hf_dir) and tokenizer.eos_token_id is not None:
        # As in training: nothing is put before a text, and it stands after the end of another.
        beginning = {"add_bos_token": False, "prefix_token_id": tokenizer.eos_token_id}
    settings = {"tokenizer": tokenizer, "batch_size": batch_size, "device": device, **beginning}
    return counting_cuts()(pretrained=model.to(device).eval(), **settings)


def run_items(model: Any, name: str, task: Any, items: range, cluster: str | None = None) -> list[dict[str, Any]]:
    """Run some items of a task as lm-eval's `simple_evaluate` does, without its 2 s of gathering facts.

    Args:
        model: lm-eval's wrapper.
        name: the task's name.
        task: lm-eval's task object.
        items: numbers of the items; none is none.
        cluster: the field of the task's documents that items of one passage share.

    Returns:
        `item_lines` of them.

    Raises:
        DataError: if an item does not fit into the model's context.
    """
    import numpy as np
    import torch
    from lm_eval.evaluator import evaluate as run

    if not items:
        return []
    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)
    samples: Any = {name: items}  # a range: lm-eval asks of every item whether it is in there
    try:
        results = run(
            model, {"tasks": {name: task}}, samples=samples, bootstrap_iters=0, confirm_run_unsafe_code=True
        )  # fmt: skip
    except AssertionError as error:
        what = _TOO_LONG.get(traceback.extract_tb(error.__traceback__)[-1].name)
        if what is None:
            what = f"lm-eval fails on it: {error}"
        fix = "score a model with a longer train.seq_length, or leave the task out: --without"
        raise DataError(what.format(model.max_length), f"task {name}", fix) from error
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # a task's own templates and code, and the libraries below them
        log.debug("lm-eval failed", exc_info=True)
        what = f"lm-eval fails on it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(what, f"task {name}", "leave the task out with --without, or fix it") from error
    assert results is not None, "each rank runs its items as if alone"
    samples = results["samples"][name]
    return item_lines(name, samples, [model.cut_of(sample["arguments"]) for sample in samples], cluster)


def aggregate(task: Any, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return a task's scores over all items, as lm-eval aggregates them, by `metric,filter`."""
    from lm_eval.api.metrics import mean

    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for line in lines:
        for metric in line["metrics"]:
            values[metric, line["filter"]].append(line[metric])
    return {f"{metric},{name}": task.aggregation().get(metric, mean)(found) for (metric, name), found in values.items()}

"""One model, one task: the model as lm-eval takes it, some items' results, and a task's scores from all of them."""

from __future__ import annotations

import random
import traceback
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, DataError
from megacode.eval.scores import item_lines

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
    from lm_eval.models.huggingface import HFLM
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = "float32" if device == "cpu" else "auto"
    try:
        model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        fix = "export it anew with `megacode convert to-hf`"
        raise CheckpointError(f"transformers cannot load it: {reason}", str(hf_dir), fix) from error
    return HFLM(pretrained=model.to(device).eval(), tokenizer=tokenizer, batch_size=batch_size, device=device)


def run_items(model: Any, name: str, task: Any, items: range) -> list[dict[str, Any]]:
    """Run some items of a task as lm-eval's `simple_evaluate` does, without its 2 s of gathering facts.

    Args:
        model: lm-eval's wrapper.
        name: the task's name.
        task: lm-eval's task object.
        items: numbers of the items; none is none.

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
            raise
        fix = "score a model with a longer train.seq_length, or leave the task out: --without"
        raise DataError(what.format(model.max_length), f"task {name}", fix) from error
    assert results is not None, "each rank runs its items as if alone"
    return item_lines(name, results["samples"][name])


def aggregate(task: Any, lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return a task's scores over all items, as lm-eval aggregates them, by `metric,filter`."""
    from lm_eval.api.metrics import mean

    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for line in lines:
        for metric in line["metrics"]:
            values[metric, line["filter"]].append(line[metric])
    return {f"{metric},{name}": task.aggregation().get(metric, mean)(found) for (metric, name), found in values.items()}

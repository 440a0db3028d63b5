"""Score files as `megacode evaluate` writes them, of models that exist in numbers only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megacode.eval.scores import questions_digest, task_scores
from megacode.statistics.arms import Arm
from megacode.statistics.reading import Outcomes, Scores, Task

Results = Mapping[str, Sequence[Any]]
BITS = "bits_per_byte"


def write_scores(
    path: Path,
    results: Results,
    metric: str = "acc",
    *,
    seed: int | None = 1,
    change: Callable[..., None] | None = None,
) -> Path:
    """Write a score file with one metric; results of bits per byte are pairs of nats and bytes.

    Args:
        path: of the score file.
        results: by task, one result an item.
        metric: the metric's name.
        seed: of the run; None: the model is not megacode's.
        change: may change the document and its lines before they are written.
    """
    lines = [
        {"task": task, "item": i, "filter": "none", "doc_hash": f"{task}{i}", "prompt_hash": f"{i}", metric: value,
         "metrics": [metric], "target": 0, "answers": []}
        for task, values in results.items() for i, value in enumerate(values)
    ]  # fmt: skip
    scores, facts = {}, {}
    for task, values in results.items():
        own = [line for line in lines if line["task"] == task]
        if metric == BITS:
            total = -sum(nats for nats, _ in values) / np.log(2) / sum(size for _, size in values)
        else:
            total = float(np.mean(values))
        scores[task] = task_scores({f"{metric},none": total}, own)
        facts[task] = {
            "items": len(own), "questions_sha256": questions_digest(own), "prompts_sha256": f"prompts of {task}",
            "version": 1.0, "cut": None, "higher_is_better": {metric: metric != BITS},
        }  # fmt: skip
    chain = None if seed is None else {"fingerprints": [{"seed": seed}]}
    document: dict[str, Any] = {
        "suite": "made up", "model": {"path": str(path), "weights_sha256": path.stem, "megacode": chain},
        "scores": scores, "means": {}, "mean_parts": {}, "tasks": facts, "left_out": {},
        "settings": {"limit": None, "device": "cpu", "dtype": "torch.float32"},
        "versions": {"lm_eval": "0.4.13", "transformers": "5", "torch": "2"},
        "items_file": path.with_suffix(".items.jsonl").name,
    }  # fmt: skip
    if change is not None:
        change(document, lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    path.with_suffix(".items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def made_arms(values: np.ndarray, clusters: np.ndarray | None = None, seeds: Sequence[Sequence[int]] = ()) -> list[Arm]:
    """Return arms `a0`, `a1`, ... of one task `made`, without files.

    Args:
        values: float64[arms, seeds, items] of the metric `acc`.
        clusters: int64[items].
        seeds: the seeds of each arm; absent: 0, 1, ...; an arm has as many models as seeds.
    """
    arms = []
    for number, arm in enumerate(values):
        own = seeds[number] if seeds else range(len(arm))
        models = [
            Scores(
                Path(f"a{number}-{seed}"), {"made": Task({}, {"acc": Outcomes(row, None, True)}, clusters, len(row))}
            )
            for seed, row in zip(own, arm, strict=False)
        ]
        arms.append(Arm(f"a{number}", tuple(models), tuple(f"seed {seed}" for seed in own)))
    return arms

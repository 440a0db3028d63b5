"""What runs on each rank of a test of loss masks: a whole training, and one step whose masked labels differ."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megacode.base.files import RunDir
from megacode.config.config_file import load_config
from megacode.data.loader import Loader
from megacode.data.windows import open_streams
from megacode.mcore import groups
from megacode.mcore.build import build
from megacode.mcore.step import train_step
from megacode.metrics.reader import read_metrics
from megacode.planning.run_plan import make_plan
from megacode.train.loop import train
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal

KEYS = ("iteration", "loss", "loss_by_source", "grad_norm", "samples_digest", "samples_by_source", "skipped")


def trained(directory: str, overrides: list[str]) -> list[dict[str, Any]]:
    """Train on the ranks there are; return what was measured."""
    config = load_config(Path(directory) / "run.yaml", overrides)
    with ExitStack() as closing:
        train(build_trainer(make_plan(config), StopSignal(), closing))
    groups.stop()
    return measured(config.directory)


def measured(run_dir: str | Path) -> list[dict[str, Any]]:
    """Return the measurements of a run's iterations and validations."""
    keys = (*KEYS, "counted_tokens_by_source")
    return [{key: line[key] for key in keys if key in line} for line in read_metrics(RunDir(run_dir).metrics)]


def stepped(directory: str, overrides: list[str], seeds: list[int]) -> dict[str, Any]:
    """Train the same iteration from the same weights for several values of all labels that do not count.

    Returns:
        `equal`: whether the weights are the same, bit for bit; `different`: whether they are others, once the
        labels that count are; `changed`: how many labels were.
    """
    config = load_config(Path(directory) / "run.yaml", overrides)
    plan = make_plan(config)
    streams = open_streams(config)
    ranks = groups.start(config.parallel, config.seed)
    loader = Loader(config, plan.schedule, plan.batches, streams, ranks.dp_rank, ranks.dp_size)
    batches = loader.batch(plan.schedule.phases[-1].first_sample)
    ends, changed = [], 0
    for seed in seeds:
        torch.manual_seed(seed)
        noise = [torch.randint_like(batch.labels, plan.vocab_size) for batch in batches]
        others = [
            replace(batch, labels=torch.where(batch.loss_mask > 0, batch.labels, other))
            for batch, other in zip(batches, noise, strict=True)
        ]
        changed = sum(int((one.labels != two.labels).sum()) for one, two in zip(batches, others, strict=True))
        ends.append(_weights(config, ranks, plan, others))
    wrong = [replace(batch, labels=(batch.labels + (batch.loss_mask > 0)) % plan.vocab_size) for batch in batches]
    other = _weights(config, ranks, plan, wrong)
    groups.stop()
    return {
        "equal": all(torch.equal(ends[0], end) for end in ends),
        "different": not torch.equal(ends[0], other),
        "changed": changed,
    }


def _weights(config: Any, ranks: Any, plan: Any, batches: Any) -> torch.Tensor:
    rank_model = build(config, ranks, plan.vocab_size)
    train_step(rank_model, batches, 1e-2, len(plan.schedule.source_names))
    return torch.cat([p.detach().flatten().clone() for chunk in rank_model.chunks for p in chunk.parameters()])

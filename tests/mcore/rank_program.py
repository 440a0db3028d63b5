"""What runs on the ranks of tests/mcore: tiny models, tiny batches, and what each layout made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megacode.config.run import RunConfig
from megacode.mcore import groups
from megacode.mcore.parts import Parts, build

SOURCES, SEQ_LENGTH, BATCH, MICRO, VOCAB = 2, 32, 8, 2, 250


@dataclass
class Batch:
    """One micro-batch, as data.loader would make it."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor | None
    source_ids: Tensor


def run_config(
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
    dtype: str = "fp32",
    seed: int = 7,
) -> RunConfig:
    """Return the config of a tiny model; 250 tokens, so that the embedding is padded, differently with TP 1 and 2."""
    shape = {"num_layers": 4, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4}
    rate = {"schedule": "constant", "peak": 1e-3}
    return RunConfig.model_validate(
        {
            "name": "tiny",
            "seed": seed,
            "model": {**shape, "num_query_groups": 2, "vocab_size": VOCAB, **(model or {})},
            "sources": {"code": {"path": "code"}, "text": {"path": "text"}},
            "phases": [{"name": "all", "iterations": 100, "blend": {"code": 1, "text": 1}, "learning_rate": rate}],
            "train": {
                "seq_length": SEQ_LENGTH,
                "global_batch_size": BATCH,
                "micro_batch_size": MICRO,
                **(train or {}),
            },
            "parallel": {"distributed_optimizer": False, **(parallel or {})},
            "precision": {"dtype": dtype},
        }
    )


def microbatch(iteration: int, index: int, isolated: bool = False) -> Batch:
    """Return micro-batch `index` of an iteration's global batch: the same tokens in every layout.

    Half of the tokens follow from the one before them, so that there is something to learn; some labels are masked.
    """
    generator = torch.Generator().manual_seed(1000 * iteration + index)
    tokens = torch.randint(0, VOCAB, (MICRO, SEQ_LENGTH + 1), generator=generator)
    tokens[:, 1::2] = (tokens[:, :-1:2] * 3 + 1) % VOCAB
    mask = (torch.rand(MICRO, SEQ_LENGTH, generator=generator) < 0.9).float()
    borders = torch.tensor([0, 5, 20, SEQ_LENGTH, SEQ_LENGTH + 1 + index, MICRO * SEQ_LENGTH], dtype=torch.int32)
    return Batch(
        tokens[:, :-1].contiguous(),
        tokens[:, 1:].contiguous(),
        mask,
        torch.arange(SEQ_LENGTH).expand(MICRO, -1),
        borders if isolated else None,
        torch.tensor([index % SOURCES, (index // 2) % SOURCES]),
    )


def microbatches(parts: Parts, iteration: int) -> list[Batch]:
    """Return this rank's micro-batches of an iteration."""
    ranks, isolated = parts.ranks, parts.config.train.isolate_documents
    count = BATCH // MICRO
    return [microbatch(iteration, index, isolated) for index in range(count)][ranks.dp_rank :: ranks.dp_size]


def started(config: RunConfig) -> Parts:
    """Return the parts of a run on the ranks there are."""
    torch.set_num_threads(1)
    return build(config, groups.start(config.parallel, config.seed), VOCAB)


def iterate(parts: Parts, first: int, count: int) -> list[dict[str, Any]]:
    """Train some iterations; return what each said."""
    from megacode.mcore.step import train_step

    results = []
    for iteration in range(first, first + count):
        result = train_step(parts, microbatches(parts, iteration), 1e-3 * (iteration + 1) / 10, SOURCES)
        results.append(vars(result))
    return results


def layouts(cases: dict[str, dict[str, Any]], iterations: int = 10) -> dict[str, list[dict[str, Any]]]:
    """Train each case's config from its initial weights; return what each iteration said, by case."""
    found = {}
    for name, case in cases.items():
        found[name] = iterate(started(run_config(**case)), 0, iterations)
    return found

"""Training step on one process: megacode on Megatron-core beside a plain transformers Llama with torch's AdamW.

    python tools/bench/train_step.py [--rounds 30] [--shapes 0.1M,0.9M] [--json FILE]

Both train the same shape on the same tokens in fp32 with one thread, in one process, and take turns step by step.
Reported are medians of CPU time, which other load on the machine hardly moves, and the ratio of tokens per CPU second
(above 1: megacode is faster). The baseline is what a careful user writes: SDPA attention, the model's own loss,
gradient clipping, AdamW as torch constructs it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from megacode.config.run import RunConfig
from megacode.mcore import groups
from megacode.mcore.build import build
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.step import train_step

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Shape:
    """A model and a batch; heads are 4, query groups 2."""

    hidden: int
    layers: int
    length: int
    vocabulary: int
    batch: int

    @property
    def ffn(self) -> int:
        """Width of the MLP: 8/3 of the hidden size, a multiple of 16."""
        return self.hidden * 8 // 3 // 16 * 16


# Small shapes show overhead, large ones matrix products. Ratios: 1.00 to 1.90 on one EPYC, 0.86 to 1.07 on another.
SHAPES = {
    "0.1M": Shape(64, 2, 64, 256, 4),
    "0.9M": Shape(128, 4, 128, 512, 8),
    "5M": Shape(256, 4, 128, 4096, 8),
    "demo": Shape(256, 6, 256, 8192, 16),
}


def model_settings(shape: Shape) -> dict[str, int]:
    """Return the section `model` of a run's config."""
    return {
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "vocab_size": shape.vocabulary,
    }


def megacode_step(shape: Shape) -> Callable[[MicroBatch], None]:
    """Return a function that trains one step of megacode's model."""
    config = RunConfig.model_validate(
        {
            "name": "bench",
            "model": model_settings(shape),
            "sources": {"a": {"path": "a"}, "b": {"path": "b"}},
            "phases": [
                {
                    "name": "all",
                    "iterations": 1000,
                    "blend": {"a": 1, "b": 1},
                    "learning_rate": {"schedule": "constant", "peak": LEARNING_RATE},
                }
            ],
            "train": {
                "seq_length": shape.length,
                "global_batch_size": shape.batch,
                "micro_batch_size": shape.batch,
            },
            "precision": {"dtype": "fp32"},
        }
    )
    built = build(config, groups.start(config.parallel, config.seed), shape.vocabulary)
    return lambda batch: _discard(train_step(built, [batch], LEARNING_RATE, 2))


def transformers_step(shape: Shape) -> Callable[[MicroBatch], None]:
    """Return a function that trains one step of transformers' Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=shape.length,
            attn_implementation="sdpa",
            # On, each step would keep keys and values for a generation that never comes.
            use_cache=False,
            tie_word_embeddings=False,
        )
    )
    model.train()
    # Betas and decay are megacode's defaults.
    adam = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)

    def step(batch: MicroBatch) -> None:
        # The model shifts its labels itself.
        loss = model(input_ids=batch.tokens, labels=batch.tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        _discard(loss.item())

    return step


def _discard(result: Any) -> None:
    """The host has the loss now, as a loop that logs it would."""


def random_batch(shape: Shape, index: int) -> MicroBatch:
    """Return a batch of random tokens."""
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(0, shape.vocabulary, (shape.batch, shape.length + 1), generator=generator)
    mask, rows = torch.ones(shape.batch, shape.length), torch.arange(shape.batch)
    return MicroBatch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=mask,
        position_ids=torch.arange(shape.length).repeat(shape.batch, 1),
        cu_seqlens=None,
        source_ids=rows % 2,
        samples=rows,
    )


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Return CPU seconds a step (medians) of both, and the ratio of their speeds."""
    steps = {"megacode": megacode_step(shape), "transformers": transformers_step(shape)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    # The first steps allocate Adam's moments and choose kernels.
    warm_up = 3
    for index in range(warm_up + rounds):
        batch = random_batch(shape, index)
        # Who comes first takes turns too: the second finds warmer caches.
        for name in sorted(steps, reverse=index % 2 == 1):
            start = time.process_time()
            steps[name](batch)
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values[warm_up:]) for name, values in seconds.items()}
    tokens = shape.batch * shape.length
    return {
        "milliseconds": {name: round(1e3 * value, 2) for name, value in medians.items()},
        "tokens_per_cpu_second": {name: round(tokens / value) for name, value in medians.items()},
        # Runs differ: at the smallest shape the ratio was 1.00 to 1.07.
        "ratio": round(medians["transformers"] / medians["megacode"], 3),
    }


def main(
    rounds: Annotated[int, typer.Option(help="timed steps of each")] = 30,
    shapes: Annotated[str, typer.Option(help="some of " + ", ".join(SHAPES))] = ",".join(SHAPES),
    out: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Compare the two on every shape."""
    torch.set_num_threads(1)
    figures = {}
    for name in shapes.split(","):
        figures[name] = measure(SHAPES[name], rounds)
        ms, ratio = figures[name]["milliseconds"], figures[name]["ratio"]
        typer.echo(f"{name:>5}  megacode {ms['megacode']:8.2f} ms  transformers {ms['transformers']:8.2f} ms  x{ratio}")
    if out:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

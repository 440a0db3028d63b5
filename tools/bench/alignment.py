"""What the alignment probe costs: a comparison of the sources beside training iterations, in turns, on one process.

    python tools/bench/alignment.py [--rounds 10] [--every 500] [--sources 3] [--samples 64] [--json FILE]

The model is that of `train_step.py --shapes demo` with a batch of 64 sequences in micro-batches of 16, fp32, on one
thread. Reported are medians of CPU time, which other load on the machine hardly moves, and the share of a run that
compares after every so many iterations.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).parent))
from train_step import LEARNING_RATE, SHAPES, Shape, model_settings, random_batch

from megacode.config.run import RunConfig
from megacode.mcore import alignment, groups
from megacode.mcore.build import build
from megacode.mcore.rank_model import RankModel
from megacode.mcore.step import train_step

MICRO = 16
WARM_UP = 1  # the first step makes Adam's moments


def model(shape: Shape, sources: list[str], batch: int) -> RankModel:
    """Return the model that both measure."""
    rate = {"schedule": "constant", "peak": LEARNING_RATE}
    phase = {"name": "all", "iterations": 1000, "blend": dict.fromkeys(sources, 1), "learning_rate": rate}
    config = RunConfig.model_validate(
        {
            "name": "bench",
            "model": model_settings(shape),
            "sources": {name: {"path": name} for name in sources},
            "phases": [phase],
            "train": {"seq_length": shape.length, "global_batch_size": batch, "micro_batch_size": MICRO},
            "precision": {"dtype": "fp32"},
        }
    )
    return build(config, groups.start(config.parallel, config.seed), shape.vocabulary)


def main(
    rounds: Annotated[int, typer.Option(help="timed iterations and comparisons")] = 10,
    every: Annotated[int, typer.Option(help="iterations between two comparisons")] = 500,
    sources: Annotated[int, typer.Option(help="number of sources")] = 3,
    samples: Annotated[int, typer.Option(help=f"held-out windows of each source, a multiple of {MICRO}")] = 64,
    batch: Annotated[int, typer.Option(help=f"sequences of an iteration, a multiple of {MICRO}")] = 64,
    out: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Time both in turns."""
    torch.set_num_threads(1)
    shape, names = SHAPES["demo"], [f"source {number}" for number in range(sources)]
    rank_model = model(shape, names, batch)
    held_out = {
        name: partial(list, [random_batch(shape, 1000 * (number + 1) + k) for k in range(samples // MICRO)])
        for number, name in enumerate(names)
    }
    seconds: dict[str, list[float]] = {"iteration": [], "comparison": []}
    for number in range(WARM_UP + rounds):
        batches = [random_batch(shape, number * batch + index) for index in range(batch // MICRO)]
        start = time.process_time()
        train_step(rank_model, batches, LEARNING_RATE, sources)
        seconds["iteration"].append(time.process_time() - start)
        start = time.process_time()
        alignment.compare(rank_model, held_out, sources)
        seconds["comparison"].append(time.process_time() - start)
    found = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
    share = found["comparison"] / (every * found["iteration"])
    iteration, comparison = (f"{found[name]:.2f} s" for name in ("iteration", "comparison"))
    ratio = found["comparison"] / found["iteration"]
    typer.echo(f"an iteration of {batch} sequences {iteration}, a comparison of {sources} x {samples} {comparison}")
    typer.echo(f"that is {ratio:.2f} iterations: {share:.2%} of a run that compares every {every}")
    if out:
        figures = {**found, "share": share, "every": every, "sources": sources, "samples": samples, "batch": batch}
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

#!/usr/bin/env python3
"""Saving a checkpoint: how long training waits, and how long until it is durable; beside what else there is.

    python tools/bench/save.py [--rounds 5] [--hidden 512] [--layers 8] [--json FILE]

One process, one model with its AdamW state in fp32. In turns: megacode beside the loop, megacode waiting, torch's
distributed checkpoint (`async_save` and `save`) and Megatron-core's `dist_checkpointing.save` of the same tensors. The
others do not hash what they write; megacode does. Before each save one iteration is trained, so that nothing is cached.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from megacode.base.files import RunDir
from megacode.base.units import format_bytes, format_seconds
from megacode.checkpoint.state import TrainState
from megacode.config.run import RunConfig
from megacode.config.training import CheckpointPolicy
from megacode.mcore import groups, optimizer_state
from megacode.mcore.build import build
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.rank_model import RankModel
from megacode.mcore.sharding import metadata, model_state
from megacode.mcore.step import train_step
from megacode.train.saving import Saver

Times = tuple[float, float]
# A tiny batch: an iteration has to change the weights, not to learn.
VOCABULARY, LENGTH, BATCH = 8192, 64, 2


def built(hidden: int, layers: int) -> RankModel:
    """Return a model on this process alone."""
    shape = {"hidden_size": hidden, "num_layers": layers, "ffn_hidden_size": 4 * hidden, "num_attention_heads": 8}
    document = {
        "name": "bench",
        "model": {**shape, "vocab_size": VOCABULARY},
        "sources": {"text": {"path": "text"}},
        "phases": [
            {
                "name": "all",
                "iterations": 1,
                "blend": {"text": 1},
                "learning_rate": {"schedule": "constant", "peak": 1e-3},
            }
        ],
        "train": {"seq_length": LENGTH, "global_batch_size": BATCH, "micro_batch_size": BATCH},
        "precision": {"dtype": "fp32"},
        # On one process there is nothing to share out.
        "parallel": {"distributed_optimizer": False},
    }
    config = RunConfig.model_validate(document)
    return build(config, groups.start(config.parallel, config.seed), VOCABULARY)


def batch() -> MicroBatch:
    """Return one micro-batch of random tokens."""
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1))
    mask, positions = torch.ones(BATCH, LENGTH), torch.arange(LENGTH).expand(BATCH, -1)
    rows = torch.arange(BATCH)
    return MicroBatch(tokens[:, :-1], tokens[:, 1:], mask, positions, None, torch.zeros_like(rows), rows)


def megacode(trained: RankModel, directory: Path, asynchronous: bool) -> Callable[[int], Times]:
    """Return a save by megacode's Saver: seconds that training waits, and until it is durable."""
    policy = CheckpointPolicy(asynchronous=asynchronous, keep_last=1)
    durable: list[float] = []
    saver = Saver(RunDir(directory), trained, policy, None, durable.append, -1)

    def save(number: int) -> Times:
        started = time.perf_counter()
        saver.start(TrainState(iteration=number))
        # This is what training waits for. What follows lasts until all is durable.
        waited = time.perf_counter() - started
        saver.wait()
        return waited, durable[-1]

    return save


def torch_checkpoint(trained: RankModel, directory: Path, asynchronous: bool) -> Callable[[int], Times]:
    """Return a save of the same tensors by torch.distributed.checkpoint."""
    import torch.distributed.checkpoint as dcp

    def save(number: int) -> Times:
        # Collected before the clock starts, in torch's favour: megacode does it inside.
        path, state = directory / str(number), tensors(trained)
        started = time.perf_counter()
        if asynchronous:
            future = dcp.async_save(state, checkpoint_id=path)
            waited = time.perf_counter() - started
            future.result()
            return waited, time.perf_counter() - started
        dcp.save(state, checkpoint_id=path)
        whole = time.perf_counter() - started
        return whole, whole

    return save


def megatron(trained: RankModel, directory: Path) -> Callable[[int], Times]:
    """Return a save by Megatron-core's own function, with its default settings."""
    from megatron.core import dist_checkpointing

    def save(number: int) -> Times:
        path = directory / str(number)
        path.mkdir(parents=True)
        started = time.perf_counter()
        # The form that any layout can load, as each of megacode's checkpoints.
        resharding = {**metadata(), "distrib_optim_sharding_type": "fully_reshardable"}
        state: dict[str, Any] = model_state(trained.chunks)
        described = trained.optimizer.sharded_state_dict(dict(state), is_loading=False, metadata=resharding)
        dist_checkpointing.save({**state, "optimizer": described}, str(path))
        whole = time.perf_counter() - started
        return whole, whole

    return save


def tensors(trained: RankModel) -> dict[str, torch.Tensor]:
    """Return the weights and moments by name."""
    optimizer_state.prime(trained.optimizer)
    runs = enumerate(optimizer_state.held(trained.optimizer))
    return {f"{name}.{number}": tensor for number, stretch in runs for name, tensor in stretch.tensors.items()}


def main(
    rounds: Annotated[int, typer.Option(min=2)] = 5,
    hidden: Annotated[int, typer.Option()] = 512,
    layers: Annotated[int, typer.Option()] = 8,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Save in turns, and print medians without the first round, which allocates."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    trained = built(hidden, layers)
    root = Path(tempfile.mkdtemp(prefix="bench_save_"))
    ways = {
        "megacode, beside the loop": megacode(trained, root / "a", True),
        "megacode, waiting": megacode(trained, root / "b", False),
        "torch async_save": torch_checkpoint(trained, root / "c", True),
        "torch save": torch_checkpoint(trained, root / "d", False),
        "Megatron-core save": megatron(trained, root / "e"),
    }
    times: dict[str, list[Times]] = {name: [] for name in ways}
    try:
        for number in range(rounds + 1):
            for name, save in ways.items():
                # Not timed. It lets every save meet weights that were changed since the last one.
                train_step(trained, [batch()], 1e-3, 1)
                with contextlib.redirect_stdout(io.StringIO()):
                    times[name].append(save(number))
                for old in (root / letter / str(number) for letter in "cde"):
                    # Removed at once, so that pages not yet written do not slow the next save.
                    shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        groups.stop()
    report(times, sum(tensor.nbytes for tensor in tensors(trained).values()), json_file)


def report(times: dict[str, list[Times]], size: int, json_file: Path | None) -> None:
    """Print medians, and their ratios to the first way's."""
    medians = {
        # Medians: on a disk that others use, single saves are slow.
        name: tuple(statistics.median(column) for column in zip(*seconds[1:], strict=True))
        for name, seconds in times.items()
    }
    print(f"state of {format_bytes(size)}, {len(next(iter(times.values()))) - 1} rounds")
    print(f"{'':28}{'training waits':>16}{'ratio':>8}{'durable after':>16}{'ratio':>8}")
    base = next(iter(medians.values()))
    for name, (waited, durable) in medians.items():
        ratios = waited / base[0], durable / base[1]
        columns = f"{format_seconds(waited):>16}{ratios[0]:>8.2f}{format_seconds(durable):>16}{ratios[1]:>8.2f}"
        print(f"{name:28}{columns}")
    waited = base[0]
    print(f"training waits less than 1 % where saves are more than {format_seconds(100 * waited)} apart")
    if json_file is not None:
        json_file.write_text(json.dumps({"bytes": size, "medians": medians}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

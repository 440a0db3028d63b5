"""What optimizer states in less than fp32 cost in loss: a tiny model trained on bytes of Python's standard library.

    python tools/bench/optimizer_memory.py [--iterations 200] [--seeds 3] [--json FILE]

Every setting trains the same bf16 model from the same weights on the same batches, four micro-batches each. Shown is
the loss on held-out files, and how much higher it is than with fp32 states: the mean over seeds, and the largest
distance of a seed from it. A seed chooses weights and batches. For comparison, fp32 states also train from masters that
are 2^-22 larger, which is what last bits alone change; and with one or both moments rounded after each step as
Transformer Engine's own FP8 moments are, where zeros stay zero.
"""

from __future__ import annotations

import json
import statistics
import sysconfig
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from megacode.config.run import RunConfig
from megacode.mcore import groups, optimizer_state
from megacode.mcore.build import build
from megacode.mcore.micro_batch import MicroBatch
from megacode.mcore.optimizer import inner_optimizers
from megacode.mcore.step import evaluate, train_step

NUDGED = "fp32, other last bits"
SETTINGS: dict[str, dict[str, str]] = {
    "fp32 states": {},
    NUDGED: {},
    "masters: bf16_remainder": {"masters": "bf16_remainder"},
    "moments: bf16": {"moments": "bf16"},
    "gradients: bf16": {"gradients": "bf16"},
    "all three": {"moments": "bf16", "masters": "bf16_remainder", "gradients": "bf16"},
    "moments: fp8_bf16": {"moments": "fp8_bf16"},
    "all three, fp8_bf16": {"moments": "fp8_bf16", "masters": "bf16_remainder", "gradients": "bf16"},
    "engine's FP8, first": {},
    "engine's FP8, both": {},
}
ENGINES = {"engine's FP8, first": ("exp_avg",), "engine's FP8, both": ("exp_avg", "exp_avg_sq")}
LENGTH, MICRO, MICRO_BATCHES, PEAK = 64, 4, 4, 3e-3


def config(precision: dict[str, str], seed: int, iterations: int) -> RunConfig:
    """Return the config of a run."""
    rate = {"schedule": "constant", "peak": PEAK}
    shape = {"num_layers": 3, "hidden_size": 96, "ffn_hidden_size": 256, "num_attention_heads": 4, "vocab_size": 256}
    return RunConfig.model_validate(
        {
            "name": "bench",
            "seed": seed,
            "model": shape,
            "sources": {"a": {"path": "a"}},
            "phases": [{"name": "all", "iterations": iterations, "blend": {"a": 1}, "learning_rate": rate}],
            "train": {
                "seq_length": LENGTH,
                "global_batch_size": MICRO * MICRO_BATCHES,
                "micro_batch_size": MICRO,
            },
            "precision": {"dtype": "bf16", **precision},
        }
    )


def files() -> tuple[Tensor, Tensor]:
    """Return the bytes of the standard library's modules for training, and those of every tenth one held out."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    parts = ([path for n, path in enumerate(paths) if (n % 10 == 0) == is_held_out] for is_held_out in (False, True))
    train, held_out = (
        torch.frombuffer(bytearray(b"".join(p.read_bytes() for p in part)), dtype=torch.uint8) for part in parts
    )
    return train, held_out


def micro_batch(text: Tensor, seed: int) -> MicroBatch:
    """Return random windows of a text."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(text) - LENGTH - 1, (MICRO,), generator=generator)
    tokens = torch.stack([text[start : start + LENGTH + 1] for start in starts.tolist()]).long()
    return MicroBatch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=torch.ones(MICRO, LENGTH),
        position_ids=torch.arange(LENGTH).repeat(MICRO, 1),
        cu_seqlens=None,
        source_ids=torch.zeros(MICRO, dtype=torch.long),
        samples=torch.arange(MICRO),
    )


def round_as_engine(moment: Tensor) -> None:
    """Round a moment to E4M3 with Transformer Engine's scale, which lets the largest become 448."""
    largest = moment.abs().max()
    if largest > 0:
        scale = 1 / (largest / 448)
        moment.copy_((moment * scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() / scale)


def held_out_loss(name: str, seed: int, iterations: int, texts: tuple[Tensor, Tensor]) -> float:
    """Train a run with a setting and return its loss on 64 held-out micro-batches."""
    run = config(SETTINGS[name], seed, iterations)
    rank_model = build(run, groups.start(run.parallel, run.seed), 256)
    if name == NUDGED:
        optimizer_state.prime(rank_model.optimizer)
        for held in optimizer_state.held(rank_model.optimizer):
            held.tensors[optimizer_state.WEIGHT].mul_(1 + 2**-22)
    for iteration in range(iterations):
        first = (seed * iterations + iteration) * MICRO_BATCHES
        batches = [micro_batch(texts[0], first + number) for number in range(MICRO_BATCHES)]
        # A short warmup and a linear end, as people train.
        rate = PEAK * min((iteration + 1) / 20, 1.0, (iterations - iteration) / (iterations / 4))
        train_step(rank_model, batches, rate, 1)
        for inner in inner_optimizers(rank_model.optimizer):
            for state in inner.optimizer.state.values():
                for moment in ENGINES.get(name, ()):
                    round_as_engine(state[moment])
    return evaluate(rank_model, [micro_batch(texts[1], number) for number in range(64)], 1).loss


def main(
    iterations: Annotated[int, typer.Option(help="of each run")] = 200,
    seeds: Annotated[int, typer.Option(help="runs of each setting")] = 3,
    out: Annotated[Path | None, typer.Option("--json", help="also write the losses here")] = None,
) -> None:
    """Train settings with every seed."""
    torch.set_num_threads(1)
    texts, losses = files(), dict[str, list[float]]()
    for name in SETTINGS:
        losses[name] = [held_out_loss(name, seed, iterations, texts) for seed in range(1, seeds + 1)]
        more = [loss - exact for loss, exact in zip(losses[name], losses["fp32 states"], strict=True)]
        middle = statistics.mean(more)
        apart = max(abs(one - middle) for one in more)
        typer.echo(f"{name:24} loss {statistics.mean(losses[name]):.4f}  more {middle:+.4f} +- {apart:.4f}")
    if out:
        document: dict[str, Any] = {"iterations": iterations, "losses": losses}
        out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)

"""What CPU ranks wait for: the demo's model on two gloo ranks, with torch's own gloo groups and with megacode's.

    python tools/bench/cpu_ranks.py [--rounds 3] [--iterations 20] [--layouts dp2,tp2,pp2] [--busy 0] [--json FILE]

Contenders take turns, each in ranks of its own: `torch` has a device for each group, `shared` one for all groups, and
`batch`, which is what runs use, also has gloo's threads wait for a free core when they wake.
Reported are medians over all iterations of tokens/s and of one rank's CPU time, which other load moves less; its
threads, and how often they wake in a second in which nothing happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from megacode.base.ports import free_port
from megacode.config.run import RunConfig
from megacode.demo import LAYOUTS, RANKS, VOCABULARY, demo_config

CONTENDERS = ("torch", "shared", "batch")
WARM_UP = 3


def run(contender: str, layout: str, iterations: int) -> list[dict[str, Any]]:
    """Return what each rank found."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", __file__, "--child", contender, layout, str(iterations)]
    surroundings = {**os.environ, "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # With more threads than cores, two ranks would measure the scheduler.
    surroundings |= {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**surroundings, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(RANKS)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), contender
    return [json.loads(text.splitlines()[-1]) for text in outputs]


def child(contender: str, layout: str, iterations: int) -> None:
    """Be one rank: train, and print what was found as JSON."""
    import torch

    from megacode.mcore import device, gloo, groups
    from megacode.mcore.build import build

    torch.set_num_threads(1)
    config = RunConfig.model_validate({**demo_config(Path("demo"), layout), "evaluate": None})
    device.install()
    if contender == "torch":  # mcore's groups take their backend from the default group
        torch.distributed.init_process_group("gloo", init_method="env://")
    if contender == "shared":
        gloo.batch_threads = contextlib.nullcontext  # type: ignore[assignment]
    built = build(config, groups.start(config.parallel, config.seed), VOCABULARY)
    steps = [_step(built, config, iteration) for iteration in range(WARM_UP + iterations)][WARM_UP:]
    groups.barrier()
    before = _wakes()
    time.sleep(1.0)
    # Nothing trains in this second, so gloo's own threads wake: 1,800 times with torch's groups, else 100.
    idle = _wakes() - before
    # The other rank must stay until this one has rested its second too.
    groups.barrier()
    seconds, cpu = zip(*steps, strict=True)
    figures = {"seconds": seconds, "cpu": cpu, "threads": len(os.listdir("/proc/self/task")), "wakes": idle}
    print(json.dumps(figures), flush=True)
    # Taking the groups down is not measured, and could wait for the other rank.
    os._exit(0)


def _step(built: Any, config: RunConfig, iteration: int) -> tuple[float, float]:
    """Train an iteration; return its seconds, and those of this rank's CPU time."""
    from megacode.mcore.step import train_step

    count = config.train.global_batch_size // config.train.micro_batch_size // built.ranks.dp_size
    batches = [_batch(config, 1000 * iteration + 100 * built.ranks.dp_rank + index) for index in range(count)]
    started, cpu = time.perf_counter(), time.process_time()
    train_step(built, batches, 1e-3, len(config.sources))
    return time.perf_counter() - started, time.process_time() - cpu


def _batch(config: RunConfig, index: int) -> Any:
    """Return a micro-batch of random tokens."""
    import torch

    from megacode.mcore.micro_batch import MicroBatch

    size, length = config.train.micro_batch_size, config.train.seq_length
    # The seed is the iteration's and the rank's, so both contenders read the same tokens.
    tokens = torch.randint(0, VOCABULARY, (size, length + 1), generator=torch.Generator().manual_seed(index))
    return MicroBatch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=torch.ones(size, length),
        position_ids=torch.arange(length).repeat(size, 1),
        cu_seqlens=None,
        source_ids=torch.arange(size) % len(config.sources),
        samples=torch.arange(size),
    )


def _wakes() -> int:
    """Return how often threads of this process have left a core."""
    text = "".join((task / "status").read_text() for task in Path("/proc/self/task").iterdir())
    # Both kinds of switches: a thread that waits leaves by itself, one that is interrupted does not.
    return sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)


def main(
    rounds: Annotated[int, typer.Option(help="how often each contender has its turn")] = 3,
    iterations: Annotated[int, typer.Option(help="timed iterations of a turn")] = 20,
    layouts: Annotated[str, typer.Option(help="some of " + ", ".join(LAYOUTS))] = "dp2",
    busy: Annotated[int, typer.Option(help="processes that keep a core busy meanwhile")] = 0,
    out: Annotated[Path | None, typer.Option("--json", help="also write the figures here")] = None,
) -> None:
    """Compare the contenders under each layout."""
    document = {}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        for layout in layouts.split(","):
            document[layout] = measure(layout, rounds, iterations)
    finally:
        for other in others:
            other.kill()
    if out:
        out.write_text(json.dumps(document, indent=2) + "\n")


def measure(layout: str, rounds: int, iterations: int) -> dict[str, dict[str, Any]]:
    """Return the figures of each contender under a layout, and print them."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for index in range(rounds):
        # A machine that slows down over the rounds favours neither.
        for name in CONTENDERS if index % 2 == 0 else reversed(CONTENDERS):
            # Rank 0 speaks for both, since they meet in every iteration.
            turns[name].append(run(name, layout, iterations)[0])
    rows = {name: _summary(figures) for name, figures in turns.items()}
    for name, row in rows.items():
        ratio = row["tokens_per_second"] / rows["torch"]["tokens_per_second"]
        shown = f"{row['tokens_per_second']:7,.0f} tokens/s  x{ratio:.2f}"
        load = f"{row['threads']:3d} threads, {row['wakes']:5,d} wakes/s"
        typer.echo(f"{layout}  {name:<6}  {shown}  {1e3 * row['cpu']:5.0f} ms of CPU time, {load}")
    return rows


def _summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over the turns of a contender."""
    train = demo_config(Path("demo"), "dp2")["train"]
    seconds = statistics.median(value for turn in turns for value in turn["seconds"])
    return {
        "tokens_per_second": train["global_batch_size"] * train["seq_length"] / seconds,
        "cpu": statistics.median(value for turn in turns for value in turn["cpu"]),
        "threads": turns[0]["threads"],
        "wakes": int(statistics.median(turn["wakes"] for turn in turns)),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        typer.run(main)

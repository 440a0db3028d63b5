"""AdamW and Muon on one run, in one process: CPU time of an iteration, and loss on held-out documents.

    megacode demo --out OUT --data-only
    python tools/bench/optimizers.py OUT [--iterations 380] [--seeds 1] [--way muon] [--json FILE]

Every optimizer trains the demo's model on the same samples, from the same weights. CPU time of a whole iteration is the
median over the run's iterations; other load on the machine hardly moves it.
"""

from __future__ import annotations

import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from megacode.base.files import RunDir
from megacode.config.config_file import load_config
from megacode.demo import HELD_OUT, demo_config
from megacode.metrics.reader import read_metrics
from megacode.planning.run_plan import make_plan
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal

WAYS = {
    "adamw": ("train.optimizer=adamw",),
    "muon": ("train.optimizer=muon",),
    "muon, 2 x the rate": ("train.optimizer=muon", "train.muon.scale_factor=2"),
    "muon, 0.5 x the rate": ("train.optimizer=muon", "train.muon.scale_factor=0.5"),
}


def measured(config: Path, directory: Path, overrides: tuple[str, ...], iterations: int) -> dict[str, Any]:
    """Train a run from its start; return CPU milliseconds of an iteration, and the held-out loss at the end."""
    run = RunDir(directory)
    with ExitStack() as closing:
        run_config = load_config(config, [*overrides, f"run_dir={directory}"])
        trainer = build_trainer(make_plan(run_config), StopSignal(), closing)
        seconds = []
        iteration = trainer.begin()
        while not trainer.finished and iteration.number < iterations:
            started = time.process_time()
            iteration = trainer.step()
            seconds.append(time.process_time() - started)
            trainer.record(iteration)
        trainer.validate("interval")
        trainer.run_log.close()
    record = [line for line in read_metrics(run.metrics) if line["kind"] == "validation"][-1]
    losses = record["loss_by_source"]
    return {"milliseconds": 1e3 * statistics.median(seconds), "loss": sum(losses.values()) / len(losses)}


def main(
    out: Annotated[Path, typer.Argument(help="Directory of a demo, with its data sets.")],
    iterations: Annotated[int, typer.Option(help="Iterations to train.")] = 380,
    seeds: Annotated[int, typer.Option(help="Runs of each optimizer, with other weights and another order.")] = 1,
    way: Annotated[list[str], typer.Option(help=f"Only these: {', '.join(WAYS)}.")] = list(WAYS),  # noqa: B006
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Train the demo's run with each optimizer, and print a line for each."""
    directory = out / "optimizers"
    directory.mkdir()
    config = directory / "demo.yaml"
    document = demo_config(out.absolute(), "dp2") | {"validation": {"fraction": HELD_OUT, "samples": 48}}
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    figures_of: dict[str, list[dict[str, Any]]] = {name: [] for name in way}
    for seed in range(seeds):
        for number, name in enumerate(way):
            place = directory / f"{number}-{seed}"
            figures_of[name].append(measured(config, place, (*WAYS[name], f"seed={1234 + seed}"), iterations))
            figures = figures_of[name][-1]
            typer.echo(f"seed {seed}  {name:22} {figures['milliseconds']:8.1f} ms  held-out loss {figures['loss']:.4f}")
    if json_file is not None:
        json_file.write_text(json.dumps(figures_of, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

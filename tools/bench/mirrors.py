#!/usr/bin/env python3
"""What mirrors of metrics cost an iteration: the same small run without any, and with all, in turns.

    python tools/bench/mirrors.py [--iterations 400] [--rounds 3]

With all: wandb offline, MLflow into a database in a file, and a collector that never answers. The time of an iteration
is the median distance of the times at which lines were written, so it holds all that the loop does. The run is one CPU
rank on a model of 100,000 parameters; mirrors share its cores, at low priority. One core is the worst case.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import statistics
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from megacode.base import child_processes
from megacode.base.files import RunDir
from megacode.metrics.reader import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def main(
    iterations: Annotated[int, typer.Option(min=10, help="Of each run's first phase.")] = 400,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 3,
) -> None:
    """Print milliseconds an iteration without and with mirrors, and the ratio."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        place = Path(folder)
        write_data(place / "data")
        collector = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/metrics"
        mirrors = (
            f"metrics={{wandb: {{project: bench, mode: offline}}, mlflow: {{tracking_uri: 'sqlite:///{place}/m.db'}}, "
            f"opentelemetry: {{endpoint: '{collector}'}}, wait: 1s}}"
        )
        seconds: dict[str, list[float]] = {"without": [], "with": []}
        for number in range(rounds):
            for name, settings in (("without", []), ("with", [mirrors])):
                seconds[name].append(measured(place, f"{name}-{number}", iterations, settings))
    without, all_three = (statistics.median(seconds[name]) for name in ("without", "with"))
    for name, values in seconds.items():
        typer.echo(f"{name:8s} {' '.join(f'{1000 * value:8.2f}' for value in values)} ms an iteration")
    typer.echo(f"ratio    {all_three / without:8.3f}, on {len(os.sched_getaffinity(0))} cores")


def write_data(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("compare_losses", ROOT / "tools" / "compare_losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_golden_data(path)


def measured(place: Path, name: str, iterations: int, settings: list[str]) -> float:
    """Train a run, and return its median seconds an iteration."""
    config = ROOT / "tests" / "golden" / "golden.yaml"
    words = ["train", str(config), f"run_dir={name}", f"phases.balanced.iterations={iterations}", *settings]
    done = subprocess.run(child_processes.command(words), cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    times = [line["time"] for line in read_metrics(RunDir(place / name).metrics, "train")]
    return statistics.median(after - before for before, after in pairwise(times))


if __name__ == "__main__":
    typer.run(main)

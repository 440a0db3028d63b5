#!/usr/bin/env python3
"""What mirrors of metrics cost an iteration: the same small run without any, and with all, in turns.

    python tools/bench/mirrors.py [--iterations 1000] [--rounds 3]

With all: wandb offline, MLflow into a database in a file, and a collector that never answers. The time of an iteration
is the median distance of the times at which lines were written, so it holds all that the loop does; the first half of a
run, in which mirrors start, and the second are told apart. The run is one CPU rank on a model of 100,000 parameters;
mirrors share its cores, at low priority. One core is the worst case.
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
    iterations: Annotated[int, typer.Option(min=10, help="Of each run's first phase.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 3,
) -> None:
    """Print milliseconds an iteration without and with mirrors, and the ratio, for both halves of the runs."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        place = Path(folder)
        write_data(place / "data")
        collector = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/metrics"
        mirrors = (
            f"metrics={{wandb: {{project: bench, mode: offline}}, mlflow: {{tracking_uri: 'sqlite:///{place}/m.db'}}, "
            f"opentelemetry: {{endpoint: '{collector}'}}, wait: 1s}}"
        )
        halves: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
        for number in range(rounds):
            for name, settings in (("without", []), ("with", [mirrors])):
                halves[name].append(measured(place, f"{name}-{number}", iterations, settings))
    for half, called in enumerate(("first half", "second half")):
        medians = []
        for name, pairs in halves.items():
            values = [1000 * pair[half] for pair in pairs]
            medians.append(statistics.median(values))
            typer.echo(f"{called:11s} {name:8s} {' '.join(f'{value:8.2f}' for value in values)} ms an iteration")
        typer.echo(f"{called:11s} ratio    {medians[1] / medians[0]:8.3f}, on {len(os.sched_getaffinity(0))} cores")


def write_data(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("compare_losses", ROOT / "tools" / "compare_losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_golden_data(path)


def measured(place: Path, name: str, iterations: int, settings: list[str]) -> tuple[float, float]:
    """Train a run, and return the median seconds an iteration of its first and its second half."""
    config = ROOT / "tests" / "golden" / "golden.yaml"
    words = ["train", str(config), f"run_dir={name}", f"phases.balanced.iterations={iterations}", *settings]
    done = subprocess.run(child_processes.command(words), cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    times = [line["time"] for line in read_metrics(RunDir(place / name).metrics, "train")]
    seconds = [after - before for before, after in pairwise(times)]
    half = len(seconds) // 2
    return statistics.median(seconds[:half]), statistics.median(seconds[half:])


if __name__ == "__main__":
    typer.run(main)

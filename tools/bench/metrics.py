#!/usr/bin/env python3
"""What a long metrics.jsonl costs: at a start or a rollback, in `megacode status`, and in whole.

    python tools/bench/metrics.py [--iterations 105000] [--sources 6] [--rounds 3] [--beside FOLDER]

The file is that of a run of 440B tokens, 4.2M an iteration: 105,000 iterations, 6 sources, 12 starts, a score of every
1,000th iteration. Each measurement is a process of its own; times are medians, the memory is the highest of the
process, modules included. `--beside` names a checkout of an earlier state of the code, from before segment lines: it is
measured in turns with this one, on the same file without segments.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from megacode.base.files import RunDir, write_json
from megacode.base.units import format_bytes, format_seconds
from megacode.metrics.sinks import Events, JsonlSink, Lines

ROOT = Path(__file__).resolve().parents[2]
BATCH, LENGTH, LOST = 512, 8192, 100

# What a start does by today's code, and by that from before segment lines. Both must find the lost iterations.
_AFTER = """
from megacode.metrics.reader import lost_work
from megacode.metrics.scores import ScoreBook
from megacode.metrics.sinks import JsonlSink
{begin}
lost = lost_work(run.metrics, {iteration})
JsonlSink(run.metrics, {iteration}).close()
ScoreBook(run, None, lambda clock: 0).new()
{end}
assert lost[0] == {lost}, lost
"""
_BEFORE = """
from megacode.base.files import read_jsonl
from megacode.metrics.scores import ScoreBook
from megacode.metrics.sinks import JsonlSink
{begin}
lost = sum(line["kind"] == "train" and line["iteration"] > {iteration} for line in read_jsonl(run.metrics))
JsonlSink(run.metrics, {iteration}).close()
ScoreBook(run, None, lambda clock: 0, {iteration}).new()
{end}
assert lost == {lost}, lost
"""
_STATUS = """
from pathlib import Path
from megacode.status.document import read_status
{begin}
found = read_status(Path(run.path))
{end}
assert found["progress"]["iteration"] > 0
"""
# The clock starts after all imports. Memory (VmHWM) includes them.
_BEGIN = """
import re, time
from megacode.base.files import RunDir
run = RunDir({path!r})
started = time.perf_counter()
"""
_END = """
seconds = time.perf_counter() - started
print(seconds, 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
"""


def train_line(iteration: int, names: list[str]) -> dict[str, Any]:
    """Return a measurement as a run on GPUs writes it."""
    seen = {name: iteration * BATCH * LENGTH // len(names) for name in names}
    return {
        "kind": "train", "iteration": iteration, "consumed_samples": iteration * BATCH,
        "consumed_tokens": iteration * BATCH * LENGTH, "phase": "main", "loss": 2.0 + 100 / iteration,
        # Figures with many digits, as in a run: round ones would make the file shorter and faster to parse.
        "loss_by_source": dict.fromkeys(names, 1.5 + 0.123456789 / iteration),
        "samples_by_source": dict.fromkeys(names, BATCH // len(names)), "samples_digest": 1234567890123,
        "tokens_by_source": {name: {"planned": count, "seen": count} for name, count in seen.items()},
        "learning_rate": 3.0e-4 / iteration**0.5, "grad_norm": 0.123456789, "skipped": False, "fp8": None,
        "batch_size": BATCH, "seconds": 1.123456789, "tokens_per_second": 3733333.123456789,
        "flops_per_second": 1.123456789e17, "mfu": 0.412345678,
    }  # fmt: skip


def write_run(run: RunDir, iterations: int, sources: int, *, segments: bool) -> None:
    """Write the files of a run that reads them all: 12 starts, a score and a save every 1,000 iterations."""
    names, every = [f"source_{number}" for number in range(sources)], max(1, iterations // 12)
    events, lines = Events(run), Lines(run.metrics)
    write_json(run.plan, {"name": "bench", "seq_length": LENGTH, "total_samples": iterations * BATCH, "phases": []})
    for iteration in range(1, iterations + 1):
        if iteration % every == 1:
            clock = {"iteration": iteration - 1, "consumed_samples": (iteration - 1) * BATCH}
            events.write("start" if iteration == 1 else "resume", **clock, ranks=64, seconds=60.0)
            if segments:
                # Opening a sink writes the segment line from which a later start begins to read.
                JsonlSink(run.metrics, iteration - 1).close()
        lines.append(train_line(iteration, names))
        if iteration % 1000 == 0:
            scores = {f"task_{number}": {"acc": 0.5} for number in range(8)}
            lines.append({"kind": "score", "iteration": iteration, "suite": "code", "scores": scores})
            events.write("save", iteration=iteration, checkpoint=run.iteration_name(iteration), seconds=1.0)
    lines.close()


def measured(program: str, code: Path, run: RunDir, iterations: int) -> tuple[float, float]:
    """Return the seconds and the highest memory in bytes of a program that runs by the code of a folder."""
    parts = {"begin": _BEGIN.format(path=str(run.path)), "end": _END}
    text = program.format(**parts, iteration=iterations - LOST, lost=LOST)
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", text]  # -P: what lies in the working directory is not imported
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, memory = map(float, done.stdout.split())
    return seconds, memory


def main(
    iterations: Annotated[int, typer.Option(help="Iterations of the run.")] = 105_000,
    sources: Annotated[int, typer.Option(help="Its sources.")] = 6,
    rounds: Annotated[int, typer.Option(help="Measurements of each.")] = 3,
    beside: Annotated[Path | None, typer.Option(help="A checkout of an earlier state of the code.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Measure starts and `megacode status`, and print a table."""
    costs: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        now, then = (RunDir(Path(folder) / name) for name in ("now", "then"))
        write_run(now, iterations, sources, segments=True)
        kinds = [("this code", ROOT, now, _AFTER)]
        if beside is not None:
            # The old code knows no segment lines. A start took it 106 s and 905 MiB, so give few rounds.
            write_run(then, iterations, sources, segments=False)
            kinds.append(("beside", beside.resolve(), then, _BEFORE))
        size = now.metrics.stat().st_size
        for _, _, run, _ in kinds:
            shutil.copyfile(run.metrics, run.path / "copy")
        for _ in range(rounds):
            for name, code, run, start in kinds:
                # In turns. The file is in the page cache, so a cold disk is not in these figures.
                costs.setdefault(f"status, {name}", []).append(measured(_STATUS, code, run, iterations))
                costs.setdefault(f"start, {name}", []).append(measured(start, code, run, iterations))
                # A start changes the file, so each measurement begins with the same bytes.
                shutil.copyfile(run.path / "copy", run.metrics)
    table = Table("", "seconds", "memory", title=f"{iterations:,} iterations, {sources} sources, {format_bytes(size)}")
    for name, pairs in sorted(costs.items()):
        seconds, memory = statistics.median(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
        table.add_row(name, format_seconds(seconds), format_bytes(memory))
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"bytes": size, "measured": costs}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

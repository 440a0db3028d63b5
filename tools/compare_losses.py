#!/usr/bin/env python3
"""Compare the losses of two runs, or of two states of the code, iteration by iteration.

    tools/compare_losses.py runs/a runs/b               # two run directories, or metrics.jsonl files
    tools/compare_losses.py HEAD~1 .                   # trains the golden run with both; '.' is the working tree
    tools/compare_losses.py tests/golden/losses.txt .   # the working tree against the golden losses
    tools/compare_losses.py . --bless tests/golden/losses.txt

Exit code 0: equal within --tolerance (default 0, bit for bit); 3: not; 2: there is nothing to compare. A refactor shows
with it that it changed nothing. Golden losses change only with a line in CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from megacode.base.errors import EXIT_CHECK, CheckpointError, ConfigError, MegacodeError
from megacode.base.files import RunDir, write_text
from megacode.base.user_paths import refuse_unwritable
from megacode.data.indexed import IndexedDatasetWriter
from megacode.metrics.reader import read_metrics

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "tests" / "golden" / "golden.yaml"
VOCABULARY = 311
SOURCES = {"prose": (3, 7), "code": (5, 11)}
DOCUMENTS = 120
HEAD = "# iteration loss: tests/golden/golden.yaml\n"


def losses_of(name: str) -> dict[int, float]:
    """Return the training loss of each iteration of what a name stands for.

    Args:
        name: a run directory, a metrics.jsonl, a text file of `iteration loss`, or a git revision (`.`: working tree).

    Raises:
        CheckpointError: if it stands for nothing.
    """
    path = Path(name)
    if path.suffix == ".txt" and path.is_file():
        pairs = (line.split() for line in path.read_text().splitlines() if line and not line.startswith("#"))
        return {int(iteration): float(loss) for iteration, loss in pairs}
    metrics = path if path.suffix == ".jsonl" else RunDir(path).metrics
    if metrics.is_file():
        rows = ((line["iteration"], line["loss"]) for line in read_metrics(metrics, "train"))
        # JSON has no NaN: a loss that was not finite stands there as null.
        return {iteration: math.nan if loss is None else loss for iteration, loss in rows}
    with _checkout(name) as code:
        return _train_golden(code)


@contextmanager
def _checkout(revision: str) -> Iterator[Path]:
    """Yield a directory with the code of a revision."""
    if revision == ".":
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "code"
        # A worktree leaves the caller's files and index alone, and needs no second clone.
        done = _git("worktree", "add", "--detach", "--quiet", str(target), revision)
        if done.returncode:
            fix = "give a run directory, a metrics.jsonl, a losses.txt, a git revision, or '.' for the working tree"
            raise CheckpointError(f"{revision!r} is not a run, a file of losses or a git revision", "", fix)
        try:
            yield target
        finally:
            _git("worktree", "remove", "--force", str(target))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def _train_golden(code: Path) -> dict[int, float]:
    """Train the golden run with the code of a directory, one process and one thread."""
    with tempfile.TemporaryDirectory() as folder:
        write_golden_data(Path(folder) / "data")
        # One thread: the order of sums, and so the last bits, depends on the number. The path picks the revision; what
        # is on it already, such as another release of Megatron-core, comes after.
        path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "megacode.cli", "train", str(CONFIG)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CheckpointError(f"the golden run failed: {done.stderr.strip()[-2000:]}", str(code), "fix it first")
        return losses_of(str(Path(folder) / "runs" / "golden"))


def write_golden_data(folder: Path) -> None:
    """Write the golden run's data sets: documents of a noisy linear recurrence, another one for each source."""
    folder.mkdir(parents=True)
    # By its name: default_rng may become another generator in a later numpy.
    random = np.random.Generator(np.random.PCG64(11))
    for name, (factor, step) in SOURCES.items():
        with IndexedDatasetWriter(folder / name, np.uint16) as writer:
            for length in random.integers(20, 200, DOCUMENTS).tolist():
                noise = random.integers(0, 3, length)
                tokens = [int(random.integers(1, VOCABULARY))]
                for extra in noise[1:].tolist():
                    tokens.append(1 + (tokens[-1] * factor + step + extra) % (VOCABULARY - 1))
                writer.add(np.array([*tokens, 0], np.uint16), np.array([length + 1]))


def refuse_to_bless(path: Path) -> None:
    """Refuse, before anything is trained, a file that cannot be written or does not hold losses.

    Raises:
        ConfigError: saying which of the two.
    """
    refuse_unwritable(path, "--bless")
    if path.exists() and not path.read_bytes().startswith(HEAD.partition(":")[0].encode()):
        raise ConfigError(f"{path} is there already, and holds no losses", "--bless", "name another file")


def compare(first: dict[int, float], second: dict[int, float], tolerance: float, console: Console) -> bool:
    """Print both losses side by side; return whether they are equal within the tolerance, on the same iterations.

    Two losses that are not finite are equal.
    """
    table = Table("iteration", "A", "B", "B - A", header_style="bold")
    worst, equal = 0.0, first.keys() == second.keys()
    for iteration in sorted(first.keys() | second.keys()):
        a, b = first.get(iteration), second.get(iteration)
        difference = None if a is None or b is None else _difference(a, b)
        if difference is not None:
            # A difference of infinity stays visible here, and is never within a tolerance.
            worst = max(worst, abs(difference))
            equal = equal and abs(difference) <= tolerance
        table.add_row(str(iteration), *("-" if value is None else f"{value:.8f}" for value in (a, b, difference)))
    console.print(table)
    console.print(f"largest difference {worst:.3g}: {'equal' if equal else 'NOT equal'} within {tolerance:g}")
    return equal


def _difference(a: float, b: float) -> float:
    """Return b - a; 0 where both are not finite, infinity where one is."""
    if math.isfinite(a) and math.isfinite(b):
        return b - a
    return 0.0 if math.isfinite(a) == math.isfinite(b) else math.inf


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="run directory, metrics.jsonl, losses.txt, git revision or '.'")
    parser.add_argument("b", nargs="?", help="the same")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest absolute difference that counts as equal")
    parser.add_argument("--bless", type=Path, help="write A's losses to this file in place of comparing")
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        if arguments.bless:
            refuse_to_bless(arguments.bless)
        first = losses_of(arguments.a)
        if arguments.bless:
            # repr gives the shortest digits that read back as the same number.
            lines = (f"{iteration} {loss!r}\n" for iteration, loss in sorted(first.items()))
            write_text(arguments.bless, HEAD + "".join(lines))
            return 0
        if arguments.b is None:
            parser.error("give B, or --bless FILE")
        return 0 if compare(first, losses_of(arguments.b), arguments.tolerance, console) else EXIT_CHECK
    except MegacodeError as error:
        Console(stderr=True).print(str(error), style="red", markup=False)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

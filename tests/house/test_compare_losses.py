"""The tool that compares losses reads what counts of a run, and takes what is not finite for what it is."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import ModuleType

from rich.console import Console

from megacode.base.files import RunDir
from megacode.metrics.sinks import JsonlSink


def written(path: Path, *losses: float, back: int | None = None) -> str:
    run = RunDir(path).create()
    sink = JsonlSink(run.metrics, 0)
    for number, loss in enumerate(losses, 1):
        sink.write({"kind": "train", "iteration": number, "loss": loss})
    sink.close()
    if back is not None:
        JsonlSink(run.metrics, back).close()
    return str(path)


def test_two_losses_that_are_not_finite_are_equal_and_one_is_not(tmp_path: Path, compare_losses: ModuleType) -> None:
    one, other = written(tmp_path / "a", 2.0, math.nan), written(tmp_path / "b", 2.0, math.inf)
    third = written(tmp_path / "c", 2.0, 1.0)
    screen = Console(file=io.StringIO())
    first, second, last = (compare_losses.losses_of(name) for name in (one, other, third))
    assert compare_losses.compare(first, second, 0.0, screen)
    assert not compare_losses.compare(first, last, 1e9, screen)


def test_iterations_that_a_run_went_back_over_are_not_compared(tmp_path: Path, compare_losses: ModuleType) -> None:
    path = written(tmp_path / "a", 3.0, 2.0, 1.0, back=2)
    assert compare_losses.losses_of(path) == {1: 3.0, 2: 2.0}


def test_losses_are_blessed_into_a_file_of_losses_only(tmp_path: Path, compare_losses: ModuleType) -> None:
    run = written(tmp_path / "run", 2.0, 1.5)
    metrics = RunDir(run).metrics.read_bytes()
    assert compare_losses.main([run, "--bless", str(RunDir(run).metrics)]) == 2
    assert RunDir(run).metrics.read_bytes() == metrics
    assert compare_losses.main(["no revision", "--bless", str(tmp_path)]) == 2, "before anything is trained"
    losses = tmp_path / "losses.txt"
    for _ in range(2):
        assert compare_losses.main([run, "--bless", str(losses)]) == 0
    assert compare_losses.losses_of(str(losses)) == {1: 2.0, 2: 1.5}

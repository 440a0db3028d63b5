"""A run trains the same whichever loader feeds it, and says before it starts which one it cannot have."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from megacode.base.files import RunDir
from megacode.config.config_file import load_config
from megacode.data import dali
from megacode.metrics.reader import read_metrics
from megacode.planning.run_plan import make_plan
from megacode.train.loop import train
from megacode.train.setup import build_trainer
from megacode.train.signals import StopSignal
from tests.limits import HANG

pytestmark = pytest.mark.slow

MEASURED = (
    "iteration",
    "loss",
    "loss_by_source",
    "grad_norm",
    "samples_digest",
    "samples_by_source",
    "validation_loss",
)


def measured(config: Path, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Return what a run measured, training and validation, without times."""
    with ExitStack() as closing:
        plan = make_plan(load_config(config, [f"run_dir={name}", "validation.every=3 iterations", *overrides]))
        train(build_trainer(plan, StopSignal(), closing))
    lines = [line for line in read_metrics(RunDir(name).metrics) if line["kind"] in ("train", "validation")]
    return [{key: line[key] for key in MEASURED if key in line} for line in lines]


def test_a_run_measures_the_same_to_the_last_bit_with_every_loader(golden: Path) -> None:
    expected = measured(golden, "asked", "train.prefetch=0")
    assert len(expected) > 20
    assert measured(golden, "ahead") == expected
    assert measured(golden, "far-ahead", "train.prefetch=5") == expected
    if not dali.installed():
        pytest.skip("DALI is not installed: pip install --no-deps --requirement requirements/no-deps.txt")
    assert measured(golden, "dali", "train.loader=dali") == expected
    assert measured(golden, "dali-asked", "train.loader=dali", "train.prefetch=0") == expected


def test_a_dali_that_is_too_old_ends_the_command_before_anything_is_written(golden: Path, tmp_path: Path) -> None:
    package = tmp_path / "site" / "nvidia_dali_cuda130-1.53.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-dali-cuda130\nVersion: 1.53.0\n")
    command = [sys.executable, "-m", "megacode.cli", "train", str(golden), "train.loader=dali"]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 2, done.stderr
    assert "nvidia-dali-cuda130 1.53.0 is older than 2.0" in " ".join(done.stderr.split())
    assert "pip install --upgrade" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_unknown_loader_is_a_mistake_in_the_config(golden: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megacode.cli", "plan", str(golden), "train.loader=torch", "train.prefetch=-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 2
    assert "train.loader" in done.stderr
    assert "train.prefetch" in done.stderr

"""What runs on two ranks for the transfer tests: the same run as one process trains, in other layouts."""

from __future__ import annotations

import os
from pathlib import Path

from megacode.train.main import run as train


def train_in(config: str, runs: dict[str, list[str]]) -> list[str]:
    """Train a config with overrides for each run directory."""
    for run_dir, overrides in runs.items():
        # Meet anew, where no socket of the last meeting lingers.
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
        train(Path(config), [f"run_dir={run_dir}", *overrides])
    return list(runs)

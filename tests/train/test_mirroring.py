"""Mirrors of a run that trains: whatever services do costs it nothing, and when it is killed nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megacode.base import child_processes
from megacode.base.files import RunDir, read_json
from megacode.config.mirrors import Metrics
from megacode.metrics.mirrors.program import state_path, unsent
from megacode.metrics.reader import read_metrics
from megacode.train.mirroring import Mirrors
from tests.limits import HANG, wait_until
from tests.metrics.mirrored import (
    Collector,
    black_hole,
    mirror,
    mlflow_points,
    mlflow_runs,
    wandb_losses,
    wandb_runs,
)

pytest.importorskip("wandb", reason="wandb is not installed: pip install 'megacode[wandb]'")
pytest.importorskip("sqlalchemy", reason="it is not installed: pip install sqlalchemy alembic")
pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'megacode[mlflow]'")
pytestmark = pytest.mark.slow

Megacode = Callable[..., subprocess.CompletedProcess[str]]


def losses(run: RunDir) -> list[tuple[int, float]]:
    return [(line["iteration"], line["loss"]) for line in read_metrics(run.metrics, "train")]


def test_a_service_that_never_answers_costs_a_line_and_the_run_can_be_sent_later(
    golden: Path, tmp_path: Path, megacode: Megacode
) -> None:
    collector, run = Collector(), RunDir(tmp_path / "hanging run")
    with black_hole() as place:
        mirrors = f"{{opentelemetry: {{endpoint: 'http://{place}/v1/metrics'}}, wait: 1s}}"
        done = megacode("train", golden, f"run_dir={run.path}", f"metrics={mirrors}")
    assert done.returncode == 0, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "opentelemetry" in line]
    assert "lacks 24 lines of metrics.jsonl" in told
    assert f"megacode mirror '{run.path}'" in told
    plain = megacode("train", golden, "run_dir=plain")
    assert plain.returncode == 0, plain.stderr
    assert losses(run) == losses(RunDir(tmp_path / "plain"))
    assert not RunDir(tmp_path / "plain").mirrors.exists()
    # The address of another collector, for a run that is over: as a new start of it writes it.
    run.config.write_text(run.config.read_text().replace(f"http://{place}/v1/metrics", collector.url))
    sent = mirror(run)
    collector.close()
    assert (sent.returncode, sent.stdout) == (0, "opentelemetry: 24 lines sent\n"), sent.stderr
    assert collector.values("megacode.train.loss") == [loss for _, loss in losses(run)]


def test_a_killed_run_and_killed_mirrors_continue_their_curves(golden: Path, tmp_path: Path) -> None:
    run, uri = RunDir(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db"
    mirrors = f"{{wandb: {{project: p, mode: offline}}, mlflow: {{tracking_uri: '{uri}'}}, wait: 10m}}"
    first = start(golden, run, mirrors)
    train_until(first, run, 20)
    wait_until(lambda: min(rows(run, "wandb"), rows(run, "mlflow")) >= 20, first)
    first.kill()
    first.wait()
    reached = losses(run)[-1][0]
    # The mirrors of the killed run send what is there, and end.
    wait_until(lambda: not list(run.mirrors.glob("*.lock")))
    second = start(golden, run, mirrors)
    train_until(second, run, reached + 25)
    wait_until(lambda: rows(run, "wandb") > reached + 20 and (run.mirrors / "mlflow.lock").exists(), second)
    second.send_signal(signal.SIGCONT)
    for name in ("wandb", "mlflow"):
        os.kill(read_json(run.mirrors / f"{name}.lock")["pid"], signal.SIGKILL)
    (run.path / "stop").touch()
    assert second.wait(HANG) == 75, log_of(run)
    assert losses(run)[-1][0] > reached
    # A run that was told to stop waits five seconds for them, which a busy machine needs for their imports.
    sent = mirror(run)
    assert sent.returncode == 0, sent.stderr
    assert {unsent(run, "wandb"), unsent(run, "mlflow")} == {0}, log_of(run)
    client, shown = mlflow_runs(uri)
    assert mlflow_points(client, shown, "train/loss") == losses(run)
    (held,) = wandb_runs(run).values()
    assert wandb_losses(held["rows"]) == losses(run)


def test_a_mirror_that_is_killed_just_before_the_run_ends_is_started_once_more(
    golden: Path, tmp_path: Path, megacode: Megacode
) -> None:
    done = megacode("train", golden, "run_dir=run")
    assert done.returncode == 0, done.stderr
    run, collector = RunDir(tmp_path / "run"), Collector()
    settings = {"opentelemetry": {"endpoint": collector.url}, "wait": "10m"}
    config = yaml.safe_load(run.config.read_text())
    run.config.write_text(yaml.safe_dump({**config, "metrics": settings}))
    mirrors = Mirrors(run, Metrics.model_validate(settings), writes=True)
    mirrors.poll()
    (child,) = mirrors._children
    assert child.process is not None
    child.process.kill()
    child.process.wait()
    mirrors.finish(hurry=False)
    collector.close()
    assert unsent(run, "opentelemetry") == 0
    assert collector.values("megacode.train.loss") == [loss for _, loss in losses(run)]


def start(config: Path, run: RunDir, mirrors: str) -> subprocess.Popen[bytes]:
    overrides = [f"run_dir={run.path}", f"metrics={mirrors}", "checkpoint={every: 10 iterations, keep_last: 2}"]
    command = child_processes.command(["train", str(config), *overrides, "phases.balanced.iterations=400000"])
    with Path(f"{run.path}.log").open("ab") as log:
        return subprocess.Popen(command, stderr=log)


def train_until(process: subprocess.Popen[bytes], run: RunDir, iteration: int) -> None:
    """Halt a run that has reached an iteration and saved: it would train while its mirrors import their libraries."""
    wait_until(lambda: run.latest.exists() and losses(run)[-1][0] >= iteration, process)
    process.send_signal(signal.SIGSTOP)


def rows(run: RunDir, name: str) -> int:
    return int(read_json(state_path(run, name)).get("rows", 0))


def log_of(run: RunDir) -> str:
    return Path(f"{run.path}.log").read_text()[-5000:]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{wandb: {project: p}}", "run `wandb login`, set WANDB_API_KEY, or set metrics.wandb.mode=offline"),
        ("{wandb: {project: p, key: x}}", "metrics.wandb.key"),
        ("{wandb: {project: p, mode: on}}", "metrics.wandb.mode"),
        ("{mlflow: {tracking_uri: 'https://me:hunter2@host'}}", "set MLFLOW_TRACKING_USERNAME"),
        ("{opentelemetry: {endpoint: 'http://me:hunter2@host/v1/metrics'}}", "set OTEL_EXPORTER_OTLP_HEADERS"),
        ("{mlflow: {tracking_uri: 'http://['}}", "'http://[' is no address"),
        ("{mlflow: {tracking_uri: mlruns}}", "sqlite:///mlflow.db"),
        ("{mlflow: {tracking_uri: 'postgresql://me:hunter2@host/db'}}", "PGPASSWORD"),
        ("{opentelemetry: {endpoint: 'ftp://me:hunter2@host/v1/metrics'}}", "set OTEL_EXPORTER_OTLP_HEADERS"),
        ("{opentelemetry: {endpoint: 'https://host/v1/metrics?api_key=hunter2'}}", "set OTEL_EXPORTER_OTLP_HEADERS"),
        ("{opentelemetry: {endpoint: 'localhost:4318'}}", "http://localhost:4318/v1/metrics"),
        ("{wait: 2h}", "metrics.wait"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(
    golden: Path, tmp_path: Path, megacode: Megacode, monkeypatch: Any, settings: str, said: str
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    done = megacode("train", golden, "run_dir=run", f"metrics={settings}", "--nproc", "2")
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "hunter2" not in done.stderr
    assert not (tmp_path / "run").exists()

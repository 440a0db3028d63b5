"""Real wandb (offline), a real MLflow database and a real OTLP server get what metrics.jsonl says, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from megacode.base import child_processes
from megacode.base.files import RunDir, read_json
from megacode.metrics.mirrors.program import state_path, unsent
from tests.limits import HANG, wait_until
from tests.metrics.mirrored import (
    Collector,
    append,
    begin,
    black_hole,
    mirror,
    mlflow_points,
    mlflow_runs,
    score,
    segment,
    train,
    valid,
    validation,
    wandb_losses,
    wandb_runs,
)
from tests.metrics.wandb_server import WandbServer

pytest.importorskip("wandb", reason="wandb is not installed: pip install 'megacode[wandb]'")
pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http", reason="it is not installed: pip install 'megacode[otel]'"
)
pytest.importorskip("sqlalchemy", reason="it is not installed: pip install sqlalchemy alembic")
pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'megacode[mlflow]'")
pytestmark = pytest.mark.slow

SECRET = "0123456789abcdef" * 3
SECRETS = {
    "WANDB_API_KEY": SECRET,
    "MLFLOW_TRACKING_TOKEN": SECRET,
    "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={SECRET}",
    "OTEL_RESOURCE_ATTRIBUTES": "team=data",
    "SLURM_JOB_ID": "4711",
}


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.close()


def losses_of(run: RunDir, kind: str = "train") -> list[tuple[int, float]]:
    return sorted((place, line["loss"]) for (of, place), line in valid(run).items() if of == kind)


def assert_shown(run: RunDir, uri: str, curve: int) -> None:
    """The newest run of each service holds exactly the lines that count, and earlier ones are marked."""
    client, *runs = mlflow_runs(uri)
    assert len(runs) == curve
    assert mlflow_points(client, runs[-1], "train/loss") == losses_of(run)
    assert mlflow_points(client, runs[-1], "validation/loss") == losses_of(run, "validation")
    assert [one.data.tags.get("megacode.superseded") for one in runs] == ["true"] * (curve - 1) + [None]
    shown = list(wandb_runs(run).values())
    assert len(shown) == curve
    rows = shown[-1]["rows"]
    assert wandb_losses(rows) == losses_of(run)
    assert wandb_losses(rows, "validation") == losses_of(run, "validation")
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert ["superseded" in one["tags"] for one in shown] == [True] * (curve - 1) + [False]


def test_three_services_show_what_the_metrics_say_through_resume_and_rollback(
    tmp_path: Path, collector: Collector
) -> None:
    uri = f"sqlite:///{tmp_path}/ml flow.db"
    run = begin(
        tmp_path / "a run",
        wandb={"project": "p", "mode": "offline", "tags": ["one"], "x_axis": "tokens"},
        mlflow={"tracking_uri": uri},
        opentelemetry={"endpoint": collector.url},
    )
    append(run, validation(0, 6.0), *(train(number, 6 - number / 10) for number in range(1, 7)))
    sent = mirror(run, **SECRETS)
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.splitlines() == ["wandb: 7 lines sent", "mlflow: 7 lines sent", "opentelemetry: 7 lines sent"]
    assert_shown(run, uri, curve=1)
    # A crash: iterations 5 and 6 come again, as they were.
    append(run, segment(4), *(train(number, 6 - number / 10, seconds=2.0) for number in (5, 6, 7)), score(4, 0.75))
    assert mirror(run, **SECRETS).stdout.splitlines()[0] == "wandb: 2 lines sent"
    assert_shown(run, uri, curve=1)
    check_details(run, uri, collector)
    # Once more: nothing is left to send. And what was sent but not noted is recognized.
    assert {line.split(":")[1] for line in mirror(run, **SECRETS).stdout.splitlines()} == {" 0 lines sent"}
    state_path(run, "mlflow").unlink()
    assert "mlflow: 9 lines sent" in mirror(run, "--only", "mlflow", **SECRETS).stdout
    assert_shown(run, uri, curve=1)
    # A rollback: iteration 7 is withheld now.
    append(run, segment(6), train(7, 5.3, skipped=True), train(8, 5.2))
    assert mirror(run, **SECRETS).returncode == 0
    assert_shown(run, uri, curve=2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def check_details(run: RunDir, uri: str, collector: Collector) -> None:
    """Names, axes, times and attributes; the resource."""
    (shown,) = wandb_runs(run).values()
    assert (shown["name"], shown["config"]["train"], shown["tags"]) == ("small", {"seq_length": 64}, ["one"])
    row = shown["rows"][3]
    assert (row["iteration"], row["samples"], row["tokens"], row["_timestamp"]) == (3, 24, 24 * 64, 1700000003.0)
    assert row["train/loss_by_source/code"] == pytest.approx(5.2)
    assert not {"train/mfu", "train/samples_digest", "train/time"} & set(row)
    assert shown["rows"][-1]["score/to-code/piqa/acc"] == shown["rows"][-1]["score/to-code/means/all"] == 0.75
    client, kept = mlflow_runs(uri)
    assert mlflow_points(client, kept, "score/to-code/piqa/acc") == [(4, 0.75)]
    assert (kept.info.run_name, kept.data.params["train.seq_length"]) == ("small", "64")
    assert client.get_metric_history(kept.info.run_id, "train/loss")[0].timestamp == 1700000001000
    assert collector.values("megacode.train.loss") == pytest.approx([6 - number / 10 for number in range(1, 8)])
    assert collector.values("megacode.train.loss_by_source", source="text")[0] == pytest.approx(6.4)
    assert collector.values("megacode.iteration") == list(range(1, 8))
    assert collector.values("megacode.score.acc", suite="to-code", task="piqa") == [0.75]
    times = [time for name, _, time, _ in collector.points if name == "megacode.train.grad_norm"]
    assert times == [1700000000000000000 + number * 10**9 for number in range(1, 8)]
    assert collector.headers["x-key"] == SECRET
    named = {"service.name": "megacode", "megacode.run": "small", "slurm.job_id": "4711", "team": "data"}
    assert named.items() <= collector.resource.items()


def follow(run: RunDir, name: str) -> subprocess.Popen[bytes]:
    command = child_processes.command(["mirror", str(run.path), "--only", name, "--follow"])
    with (run.path / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0)


def has_sent(run: RunDir, name: str, rows: int) -> bool:
    return int(read_json(state_path(run, name)).get("rows", 0)) >= rows


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_mirror_that_is_killed_loses_and_doubles_nothing(tmp_path: Path, name: str) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = {"wandb": {"project": "p", "mode": "offline"}, "mlflow": {"tracking_uri": uri}}
    run = begin(tmp_path / "run", **{name: settings[name]})
    process = follow(run, name)
    for number in range(0, 45, 5):
        append(run, *(train(number + place, 5.0) for place in range(1, 5)))
        wait_until(partial(has_sent, run, name, number + 4), process)
        append(run, train(number + 5, 5.0))
        if number in (10, 25):
            process.kill()  # not its group: wandb's own process outlives it for a moment
            process.wait()
            process = follow(run, name)
    process.send_signal(signal.SIGTERM)  # a job that is told to stop tells all its processes; the run still writes
    append(run, train(46, 5.0))
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(HANG) == 0, (run.path / f"{name}.log").read_text()
    expected = [(place, 5.0) for place in range(1, 47)]
    assert unsent(run, name) == 0
    if name == "mlflow":
        client, shown = mlflow_runs(uri)
        assert mlflow_points(client, shown, "train/loss") == expected
        return
    (held,) = wandb_runs(run).values()
    assert wandb_losses(held["rows"]) == expected


def test_a_server_of_wandb_gets_what_a_killed_mirror_had_not_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online, the server alone knows what it has; the mirror's own note is ahead of it after a kill."""
    server, key = WandbServer(), "0123456789" * 4
    for name, value in {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": key, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    run = begin(tmp_path / "run", wandb={"project": "p"})
    append(run, *(train(number, 5.0) for number in range(1, 8)))
    sent = mirror(run)
    assert (sent.returncode, sent.stdout, sent.stderr) == (0, "wandb: 7 lines sent\n", "")
    append(run, *(train(number, 5.0) for number in range(8, 12)))
    process = follow(run, "wandb")
    wait_until(partial(has_sent, run, "wandb", 11), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    append(run, train(12, 5.0))
    assert mirror(run).returncode == 0
    (held,) = server.runs.values()
    assert [(row["_step"], row["iteration"]) for row in held["rows"]] == [(place, place + 1) for place in range(12)]
    append(run, segment(11), train(12, 9.0))
    assert mirror(run).returncode == 0
    server.close()
    old, new = server.runs.values()
    assert (old["name"], old["tags"], new["name"], new["tags"]) == ("small", ["superseded"], "small (2)", [])
    assert wandb_losses(old["rows"])[-1] == (12, 5.0)
    assert wandb_losses(new["rows"]) == losses_of(run)
    assert None not in server.keys
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_a_mirror_that_hangs_ends_some_time_after_its_run(tmp_path: Path) -> None:
    with black_hole() as place:
        run = begin(tmp_path / "run", mlflow={"tracking_uri": f"http://{place}"}, wait="1s")
        append(run, train(1, 5.0))
        process = follow(run, "mlflow")
        log = run.path / "mlflow.log"
        wait_until(lambda: (run.mirrors / "mlflow.lock").exists(), process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(HANG) == 1, log.read_text()
    assert log.read_text().endswith("Mirror error: not done 1.0 s after the run ended\n")
    assert unsent(run, "mlflow") == 1


def test_two_processes_do_not_send_one_run_to_one_service(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = begin(tmp_path / "run", wandb={"project": "p", "mode": "offline"}, mlflow={"tracking_uri": uri})
    append(run, train(1, 5.0))
    process = follow(run, "wandb")
    wait_until(lambda: (run.mirrors / "wandb.lock").exists(), process)
    refused = mirror(run)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (refused.returncode, refused.stdout) == (2, "mlflow: 1 line sent\n")
    assert "another process sends this run to wandb" in refused.stderr


def test_a_service_that_refuses_is_one_line_and_the_others_get_their_lines(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = begin(tmp_path / "run", mlflow={"tracking_uri": uri}, opentelemetry={"endpoint": "http://127.0.0.1:9/v1"})
    append(run, train(1, 5.0))
    done = mirror(run, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert (done.returncode, done.stdout) == (1, "mlflow: 1 line sent\n")
    assert done.stderr.startswith("Mirror error: opentelemetry: OSError: http://127.0.0.1:9/v1 did not answer")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        ("", (), "there is no run here"),
        ("name: x\n", (), "the run has no mirrors"),
        ("name: [x\n", (), "run.yaml"),
        ("[x]\n", (), "its section `metrics` cannot be used"),
        ("metrics: {wandb: {projct: x}}\n", (), "its section `metrics` cannot be used"),
        ("name: x\n", ("--only", "wandb"), "add metrics.wandb to its config"),
        (
            json.dumps({"metrics": {"wandb": {"project": "p"}, "mlflow": {"tracking_uri": "x"}}}),
            ("--follow",),
            "--only",
        ),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, config: str, options: tuple[str, ...], said: str) -> None:
    run = RunDir(tmp_path)
    if config:
        run.config.write_text(config)
    done = mirror(run, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr

"""The sbatch scripts on a real SLURM of emulated nodes: training, what is refused, and what is written down."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megacode.metrics.reader import read_metrics
from tests.limits import HANG

pytestmark = [pytest.mark.slow]


def test_two_nodes_train_what_one_process_trains(
    run: Any, cluster: Any, golden: Path, tmp_path: Path, compare_losses: Any
) -> None:
    run.config.write_text(golden.read_text().replace("data/", f"{tmp_path}/data/"))
    secret = uuid.uuid4().hex
    secrets = dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "MEGACODE_TOKEN"), secret)
    job = run.submit("train.micro_batch_size=2", nodes=2, ranks=2, **secrets)
    assert cluster.wait(job) == "COMPLETED", run.tail()
    losses = [line["loss"] for line in read_metrics(run.directory.metrics) if line["kind"] == "train"]
    expected = compare_losses.losses_of(str(golden.parent / "losses.txt"))
    assert losses == pytest.approx(list(expected.values()), abs=1e-4)
    assert_written_down(run, job, secret)
    [end] = run.lines("end")
    assert (end["exit_code"], end["action"], end["checkpoint"]) == (0, "done", "iter_0000020")
    shown = megacode(cluster, "status", run.directory.path, "--json")
    assert json.loads(shown.stdout)["job"]["state"] == "COMPLETED"


def assert_written_down(run: Any, job: str, secret: str) -> None:
    start = run.directory.provenance / "start_0001"
    assert "slurm/run.sh" in (start / "script.sh").read_text()
    assert "name: golden" in (start / "config.yaml").read_text()
    assert any(line.startswith("megatron-core==") for line in (start / "packages.txt").read_text().splitlines())
    nodes = json.loads((start / "nodes.json").read_text())
    assert (nodes["job"], nodes["ranks"], len(nodes["nodes"])) == (job, 4, 2)
    assert json.loads((start / "environment.json").read_text())["SLURM_JOB_ID"] == job
    assert secret not in "".join(path.read_text() for path in start.iterdir())


def megacode(cluster: Any, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megacode.cli", *map(str, arguments)]
    return subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=HANG, check=False)


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ("sources.code.max_epochs=0.01", "3:0", "Plan error"),
        ("train.global_batch_size=12", "2:0", "12 is not divisible by 8"),
    ],
)
def test_a_run_that_cannot_work_ends_before_a_rank_starts(
    run: Any, cluster: Any, override: str, code: str, said: str
) -> None:
    job = run.submit(override, nodes=2)
    assert cluster.wait(job) == "FAILED", run.tail()
    assert said in run.tail()
    assert cluster.facts(job)["ExitCode"] == code
    assert cluster.facts(job)["Restarts"] == "0"
    assert not run.directory.path.exists()


def test_launch_checks_and_then_submits_the_same_body(run: Any, cluster: Any, tmp_path: Path) -> None:
    run.last_until(5)
    site = tmp_path / "site.env"
    site.write_text(f"VENV={sys.prefix}\nexport SBATCH_OUTPUT={run.log}\nMAX_TRIES=2\nCONTAINER_SRUN=--label\n")
    options = ["--nodes", "2", "--gpus-per-node", "0", "--cpus-per-task", "1", "--time", "10", "--site", site, "--json"]
    refused = megacode(cluster, "launch", run.config, "parallel.tensor=3", *options)
    assert refused.returncode == 2
    assert not cluster.ask("squeue", "--noheader")
    done = megacode(cluster, "launch", run.config, f"run_dir={run.directory.path}", *options)
    assert done.returncode == 0, done.stderr
    assert cluster.wait(json.loads(done.stdout)["job"]) == "COMPLETED", run.tail()
    assert run.newest() == 5
    environment = json.loads((run.directory.provenance / "start_0001" / "environment.json").read_text())
    assert environment["MAX_TRIES"] == "2"
    assert "0: " in run.tail()  # srun was given the container's options


def test_a_node_that_fails_its_health_check_is_kept_off(run: Any, cluster: Any, saboteur: Callable[[str], str]) -> None:
    run.last_until(5)
    blind = saboteur('if [ "$SLURMD_NODENAME" = n0 ] && [ "$2" = preflight ]; then set -- "$@" --gpus 8; fi')
    job = run.submit(nodes=2, CONTAINER_EXEC=blind)
    assert cluster.wait(job) == "COMPLETED", run.tail()
    first, second = run.lines("begin")
    assert first["nodes"] == ["n0", "n1"]
    assert second["nodes"] == ["n1", "n2"]
    assert run.lines("end")[0]["excluded"] == ["n0"]
    assert cluster.facts(job)["ExcNodeList"] == "n0"

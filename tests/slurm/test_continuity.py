"""Runs go on by themselves through what ends jobs on a real SLURM, and stop where a person is needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG
from tests.slurm.conftest import await_that

pytestmark = [pytest.mark.slow]


def assert_order_unbroken(run: Any, iterations: int) -> None:
    command = [sys.executable, "-m", "megacode.cli", "status", run.directory.path, "--samples", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'"equal": {iterations},' in done.stdout
    assert '"complete": true' in done.stdout


def finish(run: Any, cluster: Any, job: str) -> None:
    """Let the run end five iterations after its newest checkpoint, while its job waits, and see it through."""
    cluster.await_state(job, "PENDING")
    last = run.newest() + 5
    run.last_until(last)
    assert cluster.wait(job) == "COMPLETED", run.tail()
    assert_order_unbroken(run, last)


def test_a_run_goes_on_after_its_time_limit(run: Any, cluster: Any) -> None:
    job = run.submit(flags=("--signal=USR1@60",))
    run.await_iteration(5)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # SLURM looks every 30 s
    end = run.await_line("end", 1)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    finish(run, cluster, job)
    assert (end["exit_code"], end["action"]) == (75, "requeue")
    assert not run.lines("cancelled")
    assert "SIGUSR1" in end["reason"]
    assert run.lines("begin")[1]["checkpoint"] == end["checkpoint"]
    assert cluster.facts(job)["Restarts"] == "1"


def test_a_run_goes_on_after_a_requeue_and_after_the_loss_of_a_node(run: Any, cluster: Any) -> None:
    job = run.submit("checkpoint.every=10 iterations", "checkpoint.keep_last=2", nodes=2)
    run.await_iteration(20)
    cluster.ask("scontrol", "requeue", job)
    before = run.await_line("begin", 2)
    run.await_iteration(run.newest() + 20, attempt=2)
    lost = before["nodes"][1]
    cluster.ask("scontrol", "update", f"NodeName={lost}", "State=DOWN", "Reason=test")
    cluster.ask("scontrol", "update", f"NodeName={lost}", "State=DRAIN", "Reason=test")  # it would come back by itself
    try:
        finish(run, cluster, job)
    finally:
        cluster.ask("scontrol", "update", f"NodeName={lost}", "State=RESUME")
    assert lost not in run.lines("begin")[2]["nodes"]
    assert not run.lines("cancelled")
    assert [line["action"] for line in run.lines("end")] == ["done"]  # SLURM itself started the job anew, twice


def test_a_chain_goes_on_until_a_person_cancels_it_and_then_again(run: Any, cluster: Any) -> None:
    job = run.submit(CONTINUITY="chain", flags=("--no-requeue",))
    first = run.await_line("begin", 1)
    assert cluster.facts(first["next"])["Dependency"].startswith(f"afterany:{job}")
    run.await_iteration(5)
    cluster.ask("scancel", "--signal=USR1", job)
    second = run.await_line("begin", 2)
    assert (second["job"], second["chain"]) == (first["next"], job)
    run.await_iteration(run.newest() + 5, attempt=2)
    cluster.ask("scancel", second["job"])
    assert cluster.wait(second["job"]) == "CANCELLED"
    assert cluster.wait(second["next"]) == "CANCELLED"
    assert len(run.lines("begin")) == 2
    assert [(line["job"], line["next"]) for line in run.lines("cancelled")] == [(second["job"], second["next"])]
    last = run.newest() + 50
    run.last_until(last)
    again = run.submit(CONTINUITY="chain")
    assert cluster.wait(again) == "COMPLETED", run.tail()
    assert_order_unbroken(run, last)
    [following] = [line["next"] for line in run.lines("end") if line["job"] == again]
    assert cluster.wait(following) == "CANCELLED"  # a finished run needs no next job


def test_a_cancelled_job_ends_its_chain_though_slurm_has_forgotten_it(run: Any, forgetful: Any) -> None:
    job = run.submit(CONTINUITY="chain", flags=("--no-requeue",))
    run.await_iteration(5)
    forgetful.ask("scancel", job)
    cancelled = run.await_line("cancelled", 1)
    await_that(lambda: forgetful.has_forgotten(job), 150, run.tail)
    # As the successor would be that nobody took out of the queue.
    late = run.submit(CONTINUITY="chain", MEGACODE_CHAIN=job, MEGACODE_CHAIN_BEFORE=job)
    refused = run.await_line("refused", 1)
    assert (cancelled["job"], refused["job"]) == (job, late)
    assert refused["reason"] == f"job {job}, which this one follows, was cancelled; so the chain ends"
    assert len(run.lines("begin")) == 1


def test_a_next_job_that_was_moved_to_a_smaller_partition_starts(
    run: Any, cluster: Any, saboteur: Callable[[str], str], tmp_path: Path
) -> None:
    """Its two nodes are one that failed and one that did not: to keep off the first it would wait for ever."""
    run.last_until(5)
    moved = tmp_path / "moved"
    once = f'if [ "$2" = preflight ] && [ -z "$MEGACODE_CHAIN_BEFORE" ]; then until [ -e {moved} ]; do sleep 0.2; done;'
    blind = saboteur(f'{once} if [ "$SLURMD_NODENAME" = n0 ]; then set -- "$@" --gpus 8; fi; fi')
    job = run.submit(nodes=2, CONTAINER_EXEC=blind, CONTINUITY="chain", flags=("--no-requeue", "--nodelist=n0,n1"))
    following = run.await_line("begin", 1)["next"]
    cluster.ask("scontrol", "update", f"JobId={following}", "Partition=small")
    moved.touch()
    end = run.await_line("end", 1)
    assert (end["action"], end["next"], end["excluded"]) == ("chain", following, [])
    assert cluster.wait(following) == "COMPLETED", run.tail()
    assert run.lines("begin")[1]["nodes"] == ["n0", "n1"]
    assert cluster.wait(job) == "FAILED"


def test_three_attempts_without_a_new_checkpoint_end_the_chain(
    run: Any, cluster: Any, saboteur: Callable[[str], str]
) -> None:
    crash = saboteur('if [ "$2" = train ]; then exit 1; fi')
    first = run.submit(CONTAINER_EXEC=crash, flags=("--no-requeue",))
    assert cluster.wait(first) == "FAILED", run.tail()
    [chained] = run.lines("chained")  # a job that may not be requeued is followed by another one
    assert cluster.wait(chained["next"]) == "FAILED", run.tail()
    assert [line["job"] for line in run.lines("begin")] == [first, chained["next"], chained["next"]]
    assert [line["action"] for line in run.lines("end")] == ["requeue", "requeue", "stop"], run.tail()
    assert cluster.facts(chained["next"])["ExitCode"] == "3:0"
    assert "3 attempts in a row made no progress: none saved a checkpoint" in run.tail()
    assert not [line for line in run.tail().splitlines() if "Traceback" in line]


@pytest.mark.parametrize("code", [2, 3])
def test_what_a_person_must_mend_is_not_tried_again(
    run: Any, cluster: Any, saboteur: Callable[[str], str], code: int
) -> None:
    job = run.submit(CONTAINER_EXEC=saboteur(f'if [ "$2" = train ]; then exit {code}; fi'))
    assert cluster.wait(job) == "FAILED", run.tail()
    assert cluster.facts(job)["ExitCode"] == f"{code}:0"
    assert cluster.facts(job)["Restarts"] == "0"
    assert [line["action"] for line in run.lines("end")] == ["stop"]

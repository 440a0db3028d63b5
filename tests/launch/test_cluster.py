"""Around a SLURM job: what is decided, noted and submitted. What needs a SLURM is in tests/slurm."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from megacode.base.errors import LaunchError
from megacode.base.files import RunDir
from megacode.launch import attempts, bad_nodes, continuity, slurm, submission
from megacode.launch.continuity import ChainStoppedError, Settings
from megacode.launch.excluded_nodes import keep_off
from megacode.launch.provenance import allowed
from megacode.launch.slurm import Job
from megacode.status.job import describe, read_job
from megacode.status.run_files import read_events

JOB = Job("7", 0, "7", "", ("a", "b"), 4)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run").create()


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SLURM's commands fail here at once, whatever this machine has."""
    for name in ("scontrol", "sinfo", "sbatch", "scancel"):
        (tmp_path / name).write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def at(run: RunDir, checkpoint: str) -> None:
    run.latest.write_text(checkpoint + "\n")


def stopped(run: RunDir, **facts: Any) -> None:
    with run.events.open("a") as file:
        file.write(json.dumps({"time": 1e12, "event": "stop", **facts}) + "\n")


@pytest.mark.parametrize(
    ("code", "action", "exit_code", "said"),
    [
        (0, "done", 0, "finished"),
        (2, "stop", 2, "a person must fix"),
        (3, "stop", 3, "a person must fix"),
        (75, "requeue", 75, "resumable"),
        (1, "requeue", 1, "failed with exit code 1"),
        (137, "requeue", 137, "killed by signal 9"),
    ],
)
def test_the_exit_code_decides(run: RunDir, code: int, action: str, exit_code: int, said: str) -> None:
    attempts.note(run, JOB, "begin")
    decision = continuity.decide(run, JOB, code, Settings())
    assert (decision.action, decision.exit_code) == (action, exit_code)
    assert said in decision.reason


def test_the_run_directory_decides_too(run: RunDir) -> None:
    attempts.note(run, JOB, "begin")
    stopped(run, reason="signal", signal="SIGUSR1")
    assert continuity.decide(run, JOB, 75, Settings("chain")).action == "chain"
    assert "SIGUSR1" in continuity.decide(run, JOB, 75, Settings()).reason
    assert continuity.decide(run, JOB, 75, Settings("none")).action == "stop"
    stopped(run, reason="error", error="RuntimeError: out of memory")
    assert "out of memory" in continuity.decide(run, JOB, 1, Settings()).reason
    stopped(run, reason="stop_file")
    assert continuity.decide(run, JOB, 75, Settings()).action == "stop"


def test_attempts_without_a_new_checkpoint_are_counted_within_a_chain(run: RunDir) -> None:
    at(run, "iter_0000010")
    for restart in range(3):
        attempts.note(run, Job("7", restart, "7", "", ("a",), 1), "begin")
    at(run, "iter_0000020")
    assert attempts.tries(run, JOB) == 0
    for job in ("7", "8", "9"):
        assert continuity.decide(run, JOB, 75, Settings()).action == "requeue"
        continuity.check_chain(run, JOB, Settings())
        attempts.note(run, Job(job, 0, "7", "", ("a",), 1), "begin")
        attempts.note(run, Job(job, 0, "other", "", ("a",), 1), "begin")
    decision = continuity.decide(run, JOB, 75, Settings())
    assert (decision.action, decision.exit_code) == ("stop", 3)
    with pytest.raises(ChainStoppedError, match="3 attempts in a row made no progress: all began at iter_0000020"):
        continuity.check_chain(run, JOB, Settings())
    continuity.check_chain(run, JOB, Settings(max_tries=4))
    continuity.check_chain(run, Job("10", 0, "10", "", ("a",), 1), Settings())  # a person submitted again


def test_a_stop_asked_for_between_two_attempts_holds(run: RunDir) -> None:
    run.stop_request.touch()
    continuity.check_chain(run, JOB, Settings())  # meant for an earlier job: the run removes it
    attempts.note(run, JOB, "begin")
    with pytest.raises(ChainStoppedError, match="was touched"):
        continuity.check_chain(run, JOB, Settings())
    assert not run.stop_request.exists()


SUCCESSOR = Job("8", 0, "7", "7", ("a", "b"), 4)


def test_a_next_job_goes_by_the_last_word_of_the_one_before(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    """SLURM has forgotten that one."""
    continuity.check_chain(run, SUCCESSOR, Settings())
    assert "job 7, which this one follows, recorded no end, and SLURM has forgotten it" in caplog.text
    caplog.clear()
    attempts.note(run, JOB, "begin", next="8")
    continuity.check_chain(run, SUCCESSOR, Settings())
    assert "assuming its node died" in caplog.text
    caplog.clear()
    attempts.note(run, JOB, "end", action="chain", reason="SIGUSR1", next="8")
    continuity.check_chain(run, SUCCESSOR, Settings())
    assert not caplog.text
    attempts.note(run, JOB, "end", action="stop", reason="exit code 2", next="8")
    with pytest.raises(ChainStoppedError, match="job 7, which this one follows, ended the chain: exit code 2"):
        continuity.check_chain(run, SUCCESSOR, Settings())
    attempts.note(run, JOB, "cancelled", action="stop", next="8")
    with pytest.raises(ChainStoppedError, match="job 7, which this one follows, was cancelled"):
        continuity.check_chain(run, SUCCESSOR, Settings())
    continuity.check_chain(run, Job("9", 0, "9", "", ("a",), 1), Settings())


@pytest.mark.parametrize(
    ("state", "ended"), [("RUNNING", False), ("PENDING", False), ("COMPLETING", True), ("FAILED", True)]
)
def test_a_next_job_never_trains_beside_the_one_before(run: RunDir, tmp_path: Path, state: str, ended: bool) -> None:
    """As where an administrator has taken its dependency away."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobId=7 JobState={state} Reason=TimeLimit\n")
    attempts.note(run, JOB, "begin", next="8")
    if ended:
        continuity.check_chain(run, SUCCESSOR, Settings())
        return
    with pytest.raises(ChainStoppedError, match=f"job 7, which .* follows, has not ended: it is {state}\n.*continues"):
        continuity.check_chain(run, SUCCESSOR, Settings())


@pytest.mark.parametrize(
    ("facts", "cancelled"),
    [
        ("JobState=COMPLETING Reason=None Restarts=0", True),
        ("JobState=CANCELLED Reason=None Restarts=0", True),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=0", False),
        ("JobState=COMPLETING Reason=NodeDown Restarts=0", False),
        ("JobState=COMPLETING Reason=None Restarts=1", False),
        ("JobState=COMPLETING Reason=None Restarts=0 PreemptTime=2026-01-01T10:00:00", False),
        ("JobState=RUNNING Reason=None Restarts=0", False),
        ("JobState=TIMEOUT Reason=TimeLimit Restarts=0", False),
        ("", False),
    ],
)
def test_what_ends_a_job_is_told_from_what_slurm_says(
    run: RunDir, tmp_path: Path, facts: str, cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SLURM 22.05 said it while the job's script still ran."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n[ '{facts}' ] && echo 'JobId=7 {facts}'\n")
    gone: list[str] = []
    monkeypatch.setattr(slurm, "cancel", gone.append)
    attempts.note(run, JOB, "begin", next="8")
    assert continuity.cancelled(run, JOB) is cancelled
    assert continuity.cancelled(run, JOB) is cancelled
    noted = [line["event"] for line in attempts.of_chain(run, JOB)]
    assert noted == ["begin", *["cancelled"] * cancelled]
    assert gone == ["8"] * 2 * cancelled


def test_a_successor_that_cannot_be_taken_back_ends_by_itself(
    run: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho JobId=7 JobState=COMPLETING Reason=None\n")
    attempts.note(run, JOB, "begin", next="8")
    decision = continuity.end(run, JOB, 143, Settings("chain"))
    assert (decision.action, decision.exit_code) == ("stop", 143)
    assert "the job was cancelled" in decision.reason
    assert "it will end by itself" in caplog.text
    with pytest.raises(ChainStoppedError, match="was cancelled"):
        continuity.check_chain(run, SUCCESSOR, Settings())


def test_no_more_nodes_are_excluded_than_the_partition_of_the_next_job_can_spare(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    partitions = {"test": ["a", "b", "c"], "small": ["a", "b"], "other": ["x", "y", "z"]}
    monkeypatch.setattr(slurm, "partition_nodes", lambda name: partitions.get(name, []))
    monkeypatch.setattr(slurm, "hostnames", lambda nodes: nodes.split(",") if nodes else [])
    told: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(slurm, "exclude", lambda number, nodes: told.append((number, [*nodes])))
    cases = {
        "test": ["a"], "small": [], "other": [], "small,test": ["a"], "": [],
    }  # fmt: skip
    for partition, kept in cases.items():
        facts = {"Partition": partition, "NumNodes": "2-2", "ExcNodeList": "a,b", "Reason": "PartitionTimeLimit"}
        monkeypatch.setattr(slurm, "show_job", lambda number, facts=facts: facts)
        assert keep_off(JOB, "8", ["a", "b"]) == kept
        assert told.pop() == ("8", kept)
    assert "job 8 will not start by itself: SLURM's reason is PartitionTimeLimit" in caplog.text
    monkeypatch.setattr(slurm, "show_job", lambda number: {})
    assert keep_off(JOB, "8", ["a"]) == []
    assert not told


def test_nodes_that_failed_their_check_are_bad_unless_all_are(run: RunDir) -> None:
    run.preflight.mkdir()
    verdicts = {"a": False, "b": True, "elsewhere": False}
    for node, ok in verdicts.items():
        check = {"node": node, "ok": ok, "problems": [{"what": "no GPU", "where": node, "fix": ""}]}
        (run.preflight / f"{node}.json").write_text(json.dumps(check))
    assert bad_nodes.find(run, JOB, 0) == {"a": "no GPU"}
    (run.preflight / "b.json").write_text(json.dumps({"node": "b", "ok": False, "problems": []}))
    assert bad_nodes.find(run, JOB, 0) == {}


def test_the_rank_that_does_not_wait_is_the_one_that_hung(run: RunDir) -> None:
    hang = {"time": 100.0, "event": "hang", "rank": 0, "host": "x"}
    run.hangs.write_text(json.dumps(hang) + "\n")
    assert bad_nodes.find(run, JOB, 50) == {"a": "rank 0 hung"}  # no stacks: the one that noticed
    run.stacks.mkdir()
    for rank in range(4):
        frame = "data/loader.py, line 5 in read" if rank == 2 else "torch/distributed/x.py, line 7 in all_reduce"
        (run.stacks / f"rank_{rank:05d}.txt").write_text(f"rank {rank}\n  File {frame}\n")
    assert bad_nodes.find(run, JOB, 50) == {"b": "rank 2 hung"}
    assert bad_nodes.find(run, JOB, 150) == {}  # a hang of an earlier attempt
    with run.hangs.open("a") as events:
        events.write(json.dumps({**hang, "rank": 3, "silent": True}) + "\n")
    assert bad_nodes.find(run, JOB, 50) == {"b": "rank 3 hung"}  # whoever does not answer at all
    run.hangs.write_text(json.dumps(hang) + "\n")
    (run.stacks / "rank_00002.txt").write_text("File torch/distributed/x.py")
    assert bad_nodes.find(run, JOB, 50) == {"a": "rank 0 hung"}  # all wait: the one that noticed


def test_a_hang_belongs_to_the_start_that_it_ended(run: RunDir) -> None:
    """Its line is another machine's, in a file of its own."""
    for time, name in ((10, "start"), (20, "save"), (100, "resume"), (120, "save")):
        with run.events.open("a") as file:
            file.write(json.dumps({"time": time, "event": name}) + "\n")
    for time, rank in ((50, 3), (51, 4), (130, 5)):
        with run.hangs.open("a") as file:
            file.write(json.dumps({"time": time, "event": "hang", "rank": rank}) + "\n")
    found = [event.get("rank", event["event"]) for event in read_events(run, [])]
    assert found == ["start", "save", 3, 4, "resume", "save", 5]


def test_secrets_are_not_written_down() -> None:
    secret = {"AWS_SECRET": "s", "HF_TOKEN": "s", "SLURM_JWT": "s", "NCCL_AUTH": "s", "MEGACODE_API_KEY": "s"}
    others = {"WANDB_API_KEY": "s", "SSH_AUTH_SOCK": "s", "HOME": "s", "LS_COLORS": "s"}
    kept = {"SLURM_JOB_ID": "7", "NCCL_DEBUG": "WARN", "PATH": "/bin", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert allowed({**secret, **others, **kept}) == kept


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({}, "not running inside a SLURM job"),
        ({"SLURM_JOB_ID": "7"}, "number of ranks is unknown"),
    ],
)
def test_what_is_no_job_of_ranks_is_refused(environment: dict[str, str], what: str) -> None:
    with pytest.raises(LaunchError, match=what):
        slurm.this_job(environment)


@pytest.mark.parametrize(("name", "value"), [("CONTINUITY", "forever"), ("MAX_TRIES", "0"), ("MAX_TRIES", "many")])
def test_wrong_settings_are_refused(name: str, value: str) -> None:
    with pytest.raises(LaunchError, match=value):
        continuity.settings({name: value})


def test_what_slurm_says_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchError, match="no controller"):
        slurm.hostnames("a[1-2]")
    with pytest.raises(LaunchError, match="not installed"):
        slurm.ask("no-such-command")
    monkeypatch.setattr(slurm, "_PATIENCE_SECONDS", 0.1)
    with pytest.raises(LaunchError, match="did not answer"):
        slurm.ask("sleep", "5")


def test_facts_of_a_job_are_read_from_one_line(tmp_path: Path) -> None:
    line = "JobId=7 JobName=a JobState=RUNNING Reason=None QOS=(null) Command=/x/y.sh a=b c NodeList=n[0-1] StdOut=/l g"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho '{line}'\n")
    facts = slurm.show_job("7")
    assert facts["NodeList"] == "n[0-1]"
    assert facts["StdOut"] == "/l g"
    assert facts["JobState"] == "RUNNING"
    assert not {"QOS", "Reason"} & set(facts)


def test_a_question_that_was_cut_off_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(slurm, "_PAUSES", (0.0, 0.0))
    once = 'mkdir "$(dirname "$0")/asked" 2>/dev/null && kill -PIPE $$'
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{once}\necho JobId=7 JobState=RUNNING\n")
    assert slurm.show_job("7")["JobState"] == "RUNNING"
    (tmp_path / "scontrol").write_text("#!/bin/sh\nkill -PIPE $$\n")
    assert slurm.show_job("7") == {}


def test_a_successor_gets_the_options_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "8")
    facts = {
        "JobName": "x",
        "NumNodes": "2",
        "Partition": "gpu",
        "StdOut": "/logs7/x-7.77.log",
        "ExcNodeList": "c[1-2]",
    }
    arguments = ["my.yaml", "seed=3"]
    command, variables = submission.successor_command(JOB, facts, Path("/s.sh"), arguments, ["d"])
    assert command[-2:] == ["/s.sh", "seed=3"]
    assert {
        "--nodes=2", "--partition=gpu", "--ntasks-per-node=8", "--gpus-per-node=8", "--output=/logs7/x-%j.77.log",
        "--exclude=d,c[1-2]", "--dependency=afterany:7",
    } <= set(command)  # fmt: skip
    assert variables == {"CONFIG": "my.yaml", "MEGACODE_CHAIN": "7", "MEGACODE_CHAIN_BEFORE": "7"}


def test_status_knows_the_last_job_as_far_as_slurm_does(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert read_job(run) is None
    attempts.note(run, JOB, "begin")
    attempts.note(run, JOB, "end", action="chain", reason="SIGUSR1", next="8")
    forgotten = read_job(run)
    assert forgotten is not None
    assert (forgotten["id"], forgotten["state"], forgotten["attempts"]) == ("8", None, 1)
    facts = {"JobState": "RUNNING", "NodeList": "n[0-1]", "EndTime": "2026-01-01T10:00:00", "Restarts": "2"}
    monkeypatch.setattr(slurm, "show_job", lambda number: facts)
    now = datetime(2026, 1, 1, 9, 0).timestamp()
    assert "8 RUNNING, on n[0-1], 1 h 00 min left" in describe(read_job(run, now) or {})
    moved = {"JobState": "PENDING", "Reason": "BadConstraints", "ExcNodeList": "n0"}
    monkeypatch.setattr(slurm, "show_job", lambda number: moved)
    assert "excludes n0; to allow them: scontrol update JobId=8 ExcNodeList=" in describe(read_job(run, now) or {})
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert read_job(run) is None


def test_launch_shows_the_script_that_it_would_submit(
    golden: Path, megacode: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    options = ("--nodes", 2, "--gpus-per-node", 4, "--partition", "big", "--time", "1:00:00", "--dry-run", "--json")
    done = megacode("launch", golden, "train.micro_batch_size=1", *options)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    script = shown["script"].splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4", "#SBATCH --partition=big", "#SBATCH --requeue"} <= {
        *script
    }
    assert script[-1].endswith(f"slurm/run.sh {golden} train.micro_batch_size=1")
    assert shown["job"] is None
    assert "is not divisible" in megacode("launch", golden, "--nodes", 3, "--dry-run").stderr


def test_launch_needs_the_body_of_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(submission, "_BODY", tmp_path / "run.sh")
    with pytest.raises(LaunchError, match="no such file"):
        submission.render_script(submission.Request(1, 1, 0, 1, "1"), "x", Path("c.yaml"), [])

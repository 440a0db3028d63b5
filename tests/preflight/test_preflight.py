"""Nodes that are unfit are found before a run starts, and named. Real processes that meet on gloo."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from megacode.base.errors import LaunchError
from megacode.mcore.rendezvous import Rendezvous
from megacode.preflight import examine as examination
from megacode.preflight.examine import examine, expected_gpus
from megacode.preflight.findings import expand, node_names
from megacode.preflight.meeting import Meeting, port_beside, soon, within
from megacode.preflight.node_health import NodeHealth, count_gpus, multiply, read_driver, slow, write_disk
from tests.limits import HANG
from tests.ranks import load_program

PROGRAM = Path(__file__).with_name("preflight_program.py")


def as_node(rank: int, nodes: int, port: int) -> dict[str, str]:
    """The environment that srun gives to one task of a node."""
    for name in ("RANK", "WORLD_SIZE"):
        assert name not in os.environ
    return {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(nodes), "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_STEP_NODELIST": f"n[0-{nodes - 1}]", "SLURM_LOCALID": "0",
        "SLURMD_NODENAME": f"n{rank}",
    }  # fmt: skip


@pytest.fixture
def port() -> int:
    """A MASTER_PORT whose neighbour, the one that is used, is free."""
    for _ in range(100):
        chosen = random.randrange(12000, 60000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port_beside(chosen)))
            return chosen
    raise AssertionError("no port is free")


class Nodes:
    """Processes that are examined together, each as one node of a job."""

    def __init__(self, folder: Path, port: int, nodes: int) -> None:
        self.run, self.port, self.nodes = folder / "run", port, nodes
        self.started: dict[int, subprocess.Popen[str]] = {}

    def start(self, rank: int, *arguments: str, program: tuple[str, ...] = ("-m", "megacode.cli", "preflight")) -> None:
        command = [sys.executable, *program, "--run-dir", str(self.run), "--json", *arguments]
        environment = as_node(rank, self.nodes, self.port)
        self.started[rank] = subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def finish(self, *ranks: int) -> dict[int, tuple[int, str, str]]:
        """Return exit code, standard output and standard error of some ranks."""
        ended = {rank: self.started[rank].communicate(timeout=HANG) for rank in ranks}
        return {rank: (self.started[rank].returncode, *said) for rank, said in ended.items()}

    def file(self, name: str) -> dict[str, Any]:
        return json.loads((self.run / "preflight" / f"{name}.json").read_text())


@contextmanager
def nodes_of(folder: Path, port: int, nodes: int) -> Iterator[Nodes]:
    """Have nodes, and leave none of them behind."""
    found = Nodes(folder, port, nodes)
    try:
        yield found
    finally:
        for process in found.started.values():
            if process.poll() is None:
                process.kill()
            process.communicate()


def whats(problems: list[dict[str, str]]) -> str:
    return "; ".join(problem["what"] for problem in problems)


def test_a_sound_machine_alone_is_fit(tmp_path: Path) -> None:
    with examine(None, None, 60.0) as verdict:
        pass
    assert verdict.ok
    (node,) = verdict.nodes
    assert node["measured"]["gpus"] == torch.cuda.device_count()
    assert "disk_write" not in node["measured"]


def test_missing_gpus_are_named_with_exit_code_3(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megacode.cli", "preflight", "--gpus", "64", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 3, done.stderr
    assert f"GPU count: 64 GPUs are expected, {torch.cuda.device_count()} found" in done.stdout
    assert "Preflight failed on 1 of 1 node" in done.stdout
    (path,) = (tmp_path / "run" / "preflight").iterdir()
    assert not json.loads(path.read_text())["ok"]


@pytest.mark.slow
def test_two_sound_nodes_meet_and_say_so(tmp_path: Path, port: int) -> None:
    with nodes_of(tmp_path, port, 2) as nodes:
        nodes.start(0)
        nodes.start(1)
        ended = nodes.finish(0, 1)
    assert [ended[rank][0] for rank in (0, 1)] == [0, 0], ended
    document = json.loads(ended[0][1])
    assert document["ok"]
    assert [node["node"] for node in document["nodes"]] == ["n0", "n1"]
    assert ended[1][1] == ""
    for node in document["nodes"]:
        assert node["measured"]["all_reduce"] > 0
        assert abs(node["measured"]["clock_offset"]) < 2
        assert node == {**nodes.file(node["node"]), "time": node["time"]}
        assert (node["job"], node["problems"], node["doing"]) == ("7", [], "")
    assert not list(nodes.run.glob(".preflight-*"))


@pytest.mark.slow
def test_a_node_that_never_joins_and_one_that_stops_are_named_in_time(tmp_path: Path, port: int) -> None:
    """Node 1 stands still once it has begun, node 2 is never there, node 3 is sound and late."""
    with nodes_of(tmp_path, port, 4) as nodes:
        stopping = (str(PROGRAM), "stopping")
        started = time.monotonic()
        nodes.start(1, "--timeout", "9", program=stopping)
        nodes.start(0, "--timeout", "9")
        time.sleep(1.0)
        nodes.start(3, "--timeout", "9")
        ended = nodes.finish(0, 3)
        assert time.monotonic() - started < 150
        os.kill(nodes.started[1].pid, signal.SIGKILL)
    assert [ended[rank][0] for rank in (0, 3)] == [3, 3], ended
    document = json.loads(ended[0][1])
    assert document["failed"] == document["missing"] == ["n1", "n2"]
    said = {node["node"]: whats(node["problems"]) for node in document["nodes"]}
    assert said["n1"].startswith("stopped or froze during a check (disk)")
    assert said["n2"] == "did not start within 9.0 s"
    assert (said["n0"], said["n3"]) == ("", "")
    assert [nodes.file(f"n{rank}")["ok"] for rank in range(4)] == [True, False, False, True]


@pytest.mark.slow
def test_a_first_node_that_never_comes_is_named_by_the_others(tmp_path: Path, port: int) -> None:
    with nodes_of(tmp_path, port, 2) as nodes:
        nodes.start(1, "--timeout", "3")
        code, out, error = nodes.finish(1)[1]
    assert (code, out) == (3, "")
    assert "the nodes cannot connect to n0 within 3.0 s: [Errno 111] Connection refused" in error
    assert "failed on 1 of 2 nodes: n0" in error
    assert "Traceback" not in error
    assert whats(nodes.file("n0")["problems"]) == "did not start within 3.0 s"
    assert nodes.file("n1")["ok"]


@pytest.mark.slow
def test_a_wrong_address_is_no_nodes_fault(tmp_path: Path, port: int) -> None:
    """Both nodes are sound, and look for each other in two places."""
    with nodes_of(tmp_path, port, 2) as nodes:
        nodes.start(0, "--timeout", "15")
        nodes.port += 1
        nodes.start(1, "--timeout", "15")
        ended = nodes.finish(0, 1)
    assert [ended[rank][0] for rank in (0, 1)] == [3, 3], ended
    document = json.loads(ended[0][1])
    assert document["failed"] == []
    assert "cannot connect to n0" in whats(document["problems"])
    assert nodes.file("n0")["ok"]
    assert nodes.file("n1")["ok"]


@pytest.mark.slow
def test_a_clock_that_is_off_is_named(tmp_path: Path, port: int) -> None:
    with nodes_of(tmp_path, port, 3) as nodes:
        nodes.start(0)
        nodes.start(1, program=(str(PROGRAM), "an_hour_ahead"))
        nodes.start(2)
        ended = nodes.finish(0, 1, 2)
    assert [ended[rank][0] for rank in (0, 1, 2)] == [3, 3, 3], ended
    document = json.loads(ended[0][1])
    assert document["failed"] == ["n1"]
    (problem,) = document["nodes"][1]["problems"]
    assert problem["what"] == "its clock is 1 h 00 min ahead"


@pytest.mark.slow
def test_a_node_that_dies_in_the_collective_is_named(tmp_path: Path, port: int) -> None:
    with nodes_of(tmp_path, port, 2) as nodes:
        nodes.start(0, "--timeout", "3")
        nodes.start(1, "--timeout", "3", program=(str(PROGRAM), "dying_in_the_collective"))
        ended = nodes.finish(0, 1)
    assert [ended[rank][0] for rank in (0, 1)] == [3, 9], ended
    document = json.loads(ended[0][1])
    assert document["failed"] == document["missing"] == ["n1"]
    assert "an all-reduce failed on n0" in whats(document["problems"])
    assert whats(nodes.file("n1")["problems"]).startswith("passed its own checks, but did not answer the others")


@pytest.mark.slow
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        with examine_in(disk / "run") as verdict:
            assert not verdict.ok
            (problem,) = verdict.nodes[0]["problems"]
        assert problem["what"] == "64 MiB cannot be written: No space left on device"
        assert problem["where"] == str(disk / "run")
        assert not list((disk / "run").glob(".preflight-*"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@contextmanager
def examine_in(path: Path) -> Iterator[Any]:
    from megacode.base.files import RunDir

    with examine(RunDir(path), None, 60.0) as verdict:
        yield verdict


def test_a_file_size_limit_is_named(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    health = NodeHealth()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 2**20, before[1]))
    try:
        write_disk(health, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert health.problems[0].what == "64 MiB cannot be written: File too large"


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with examine_in(tmp_path / "file" / "run") as verdict:
        (problem,) = verdict.nodes[0]["problems"]
    assert problem["what"] == "64 MiB cannot be written: Not a directory"


def test_several_processes_on_a_node_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in as_node(1, 2, 29500).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    with pytest.raises(LaunchError, match=r"process 1 of its node.*\n.*--ntasks-per-node=1"), examine(None, 0, 5.0):
        pass


def test_a_check_that_hangs_or_fails_is_the_nodes_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(health: NodeHealth) -> None:
        health.looks_at = "GPU 3"
        time.sleep(30)

    def failing(health: NodeHealth) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nmore of it")

    monkeypatch.setattr(examination, "checks", lambda directory, gpus: {"count": failing, "product": hanging})
    with examine(None, None, 2.0) as verdict:
        one, other = verdict.nodes[0]["problems"]
    assert (one["where"], one["what"]) == ("count", "failed: CUDA error: unspecified launch failure")
    assert (other["where"], other["what"]) == ("GPU 3", "its check (product) did not end within 1.2 s")


def test_a_wrong_count_of_gpus_says_both_numbers() -> None:
    health = NodeHealth()
    count_gpus(health, torch.cuda.device_count() + 1)
    assert "GPUs are expected" in health.problems[0].what
    assert expected_gpus({"SLURM_GPUS_ON_NODE": "8"}) == 8
    assert expected_gpus({}) is None


def test_a_product_is_right_and_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert multiply(torch.device("cpu"), 256, 0.01)[0]
    real = torch.mm

    def off_by_one(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        real(left, right, out=out)
        out[200, 200] += 1
        return out

    monkeypatch.setattr(torch, "mm", off_by_one)
    assert not multiply(torch.device("cpu"), 256, 0.01)[0]


def test_a_gpu_much_slower_than_its_neighbours_is_named() -> None:
    sound = [700 * 10**12] * 7
    assert slow([*sound, 640 * 10**12], "the median of its node's") == []
    (problem,) = slow([*sound, 350 * 10**12], "the median of its node's")
    assert problem.where == "GPU 7"
    assert problem.what == "350 TFLOP/s, 50% of the median of its node's 700 TFLOP/s"
    assert slow([*sound, 0], "the median of its node's") == []


def test_what_the_driver_says_of_errors_and_heat_is_passed_on() -> None:
    answer = """\
GPU-aa, 1980, 1980, 41, 0, Not Active, Not Active, Not Active
GPU-bb, 1980, 1980, 40, 3, Not Active, Not Active, Not Active
GPU-xx, 1980, 1980, 40, 9, Active, Active, Active
GPU-cc, 765, 1980, 92, [N/A], Active, Active, Not Active
"""
    health = NodeHealth()
    read_driver(health, answer, ["aa", "bb", "cc"])
    assert [(problem.where, problem.what) for problem in health.problems] == [
        ("GPU 1", "3 uncorrected memory errors"),
        ("GPU 2", "its hardware throttles it (hw slowdown, hw thermal slowdown) at 92 degrees Celsius"),
    ]
    assert health.measured["driver"][2]["clocks.sm"] == "765"


def test_names_of_nodes_are_read_from_slurms_short_form() -> None:
    assert expand("gpu[003-004,12],login1") == ["gpu003", "gpu004", "gpu12", "login1"]
    assert expand("r[1-2]n[09-10]x") == ["r1n09x", "r1n10x", "r2n09x", "r2n10x"]
    assert expand("") == []
    assert node_names({"SLURM_JOB_NODELIST": "n[0-3]"}, 2) == ["rank 0", "rank 1"]


@pytest.mark.slow
def test_a_meeting_costs_messages_and_bytes_in_proportion_to_the_nodes() -> None:
    """Real meetings of threads, each one node."""
    count = load_program(PROGRAM.parents[2] / "tools" / "bench" / "meeting.py").count
    few, many = count(8), count(64)
    assert many["messages"] <= 8 * few["messages"] + 64
    assert many["bytes"] <= 8.5 * few["bytes"]
    assert many["messages_first"] < 30
    assert many["messages_other"] < 30


def test_a_meeting_names_those_that_never_come_within_its_time() -> None:
    """Nodes 1 and 3 of 4 are there; rank 0 hears of them and says so to both."""
    store = HashStore()
    heard: dict[int, Any] = {}

    def come(rank: int) -> None:
        meeting = Meeting(Rendezvous(rank, 4, 0, "localhost", 20000), 0.0, store)
        heard[rank] = meeting.exchange("report", f"I am {rank}", 1.0, lambda said: sorted(said.values()), late=5.0)
        if rank == 0:
            assert meeting.present == [0, 1, 3]

    threads = [threading.Thread(target=come, args=(rank,)) for rank in (0, 1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert heard == {rank: ["I am 0", "I am 1", "I am 3"] for rank in (0, 1, 3)}


def test_the_patience_of_a_meeting_grows_with_the_nodes() -> None:
    assert 5 < soon(4) < 6
    assert soon(4096) > 40


def test_work_that_does_not_end_is_left_behind() -> None:
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(1.0))
    with pytest.raises(ValueError, match="its own"):
        within(5.0, lambda: int("its own"))


def test_the_port_is_none_of_the_runs() -> None:
    assert port_beside(29500) == 19500
    assert port_beside(5000) == 15000

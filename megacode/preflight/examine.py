"""The preflight: before a run starts, every node checks itself, then all compare clocks and try an all-reduce.

There is one process per node. They exchange results through a key-value store on rank 0, which needs no GPU and no
NCCL. So a node with dead GPUs or network adapters can still report them, and a silent node is known by name. The
all-reduce is tried only if all nodes passed their own checks. Everything that may block runs in a thread with a
timeout. A blocked thread cannot be stopped; the process must therefore end by `os._exit`.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from statistics import median

import torch
import torch.distributed as dist

from megacode.base.errors import LaunchError, Problem
from megacode.base.files import Json, RunDir, write_json
from megacode.base.units import format_seconds
from megacode.mcore import device, rendezvous
from megacode.mcore.rendezvous import Rendezvous
from megacode.preflight.findings import Findings, node_name, node_names, same_start, silent_node
from megacode.preflight.meeting import Meeting, soon, within
from megacode.preflight.node_health import NodeHealth, checks, slow

_OWN_SHARE = 0.6  # of the timeout, for a node's own checks; the rest is for those that begin later
_BACKEND_SECONDS = 60.0  # beyond our own timeout, so that we report a hanging collective before the backend aborts
_CLOCKS_APART = 5.0  # seconds; locks and heartbeats compare times between nodes
_FILE_SECONDS = 5.0  # per file; a dead file system blocks for ever
_NAMED = 16  # nodes; sending all names to all nodes would be quadratic
_GPU_NUMBERS, _CPU_NUMBERS = 64 * 2**20, 2**20  # elements of the all-reduce: 256 MiB on GPUs, 4 MiB on CPUs


@contextmanager
def examine(
    run: RunDir | None, gpus: int | None, timeout: float, clock: Callable[[], float] = time.time
) -> Iterator[Findings]:
    """Check this node and, with the others, the whole job; the nodes disconnect when the block ends.

    A context manager, because rank 0 must print the result before any process exits: a launcher may kill the rest.

    Args:
        run: the run directory, which gets one file per node; None: no disk is checked, and no file written.
        gpus: number that each node must have; None: SLURM's number, if it gives one.
        timeout: seconds for the nodes' own checks and for reporting; the all-reduce has as many again.
        clock: this node's time of day, in seconds since 1970.

    Raises:
        LaunchError: there are several processes on a node, or the environment is incomplete.
    """
    started = time.monotonic()
    place = rendezvous.read(os.environ)
    if place.local_rank:
        message = f"this is process {place.local_rank} of its node, but preflight needs exactly one per node"
        raise LaunchError(message, "megacode preflight", "srun --ntasks-per-node=1 megacode preflight")
    node = _Node(run, place, timeout)
    node.look(checks(run.path if run else None, expected_gpus(os.environ) if gpus is None else gpus))
    meeting = Meeting(place, started + timeout)
    try:
        verdict = _together(node, meeting, clock, started + timeout)
        verdict.seconds = time.monotonic() - started
        yield verdict
    finally:
        meeting.part()


def expected_gpus(environment: Mapping[str, str]) -> int | None:
    """Return the number of GPUs per node that SLURM allocated; None if it does not say."""
    count = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(count) if count.isdigit() else None


class _Node:
    """This node: its name, the results of its own checks, and its file in the run directory."""

    def __init__(self, run: RunDir | None, place: Rendezvous, timeout: float) -> None:
        self.run, self.place, self.timeout = run, place, timeout
        self.names = node_names(os.environ, place.world_size)
        self.name = node_name(os.environ, platform.node())
        self.names[place.rank] = self.name
        self.health = NodeHealth()
        self.doing = ""  # the current check; in the file of a node that froze, it names the culprit

    def look(self, todo: dict[str, Callable[[NodeHealth], None]]) -> None:
        """Run the node's own checks until the first one that times out."""
        deadline = time.monotonic() + _OWN_SHARE * self.timeout
        for name, check in todo.items():
            self.doing = name
            self.write()  # before the check, which may freeze the whole machine
            try:
                within(deadline - time.monotonic(), lambda check=check: check(self.health))  # type: ignore[misc]
            except TimeoutError:
                message = f"its check ({name}) did not end within {format_seconds(_OWN_SHARE * self.timeout)}"
                fix = "exclude the node, or allow more time: --timeout"
                self.health.problems.append(Problem(message, self.health.looks_at or name, fix))
                break
            except Exception as error:  # of any kind: the other nodes must learn that this one failed
                message = f"failed: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
                where = self.health.looks_at or name
                self.health.problems.append(Problem(message, where, "exclude the node and have it repaired"))
        self.doing = ""
        self.write()

    def document(self) -> Json:
        """Return the node's report; while a check is under way, the node counts as failed."""
        # Job, restart and step identify this very start: files of earlier ones lie in the same directory.
        variables = {"job": "SLURM_JOB_ID", "restart": "SLURM_RESTART_COUNT", "step": "SLURM_STEP_ID"}
        return {
            "node": self.name,
            "rank": self.place.rank,
            "ok": not self.health.problems and not self.doing,
            "problems": [vars(problem) for problem in self.health.problems],
            "measured": dict(self.health.measured),
            "time": round(time.time(), 3),
            "doing": self.doing,
            **{key: os.environ.get(variable, "") for key, variable in variables.items()},
        }

    def write(self) -> None:
        """Write this node's file; a disk that refuses it is reported by the disk check."""
        self.write_file(self.document())

    def write_file(self, document: Json) -> None:
        """Write a node's report to its file."""
        if self.run is not None:
            path = self.run.preflight / f"{document['node']}.json"
            with suppress(OSError, TimeoutError):
                within(_FILE_SECONDS, lambda: write_json(path, document))

    def read_file(self, name: str) -> Json | None:
        """Return another node's report from its file, if it has written one in this very start."""
        if self.run is None:
            return None
        try:
            path = self.run.preflight / f"{name}.json"
            report: Json = within(_FILE_SECONDS, lambda: json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TimeoutError):
            return None
        return report if same_start(report, self.document()) else None


class _Talk:
    """The exchange of reports. Rank 0 collects them all, and answers each node with the little that it needs.

    Attributes:
        verdict: on rank 0, the verdict on all nodes, once there is one.
    """

    def __init__(self, node: _Node, meeting: Meeting) -> None:
        self.node, self.meeting = node, meeting
        self.verdict: Findings | None = None
        self._reports: dict[int, Json] = {}

    def report(self, deadline: float) -> Json | None:
        """Send the results of the node's own checks.

        Returns:
            `ok`, and `rate`: the median FLOP/s of all GPUs; or, if nodes are missing, the `verdict`. None if rank 0
            does not answer.
        """
        # `late`: nodes start at different times, and rank 0 may begin a whole timeout later than this one.
        left = deadline - time.monotonic()
        return self.meeting.exchange("report", self.node.document(), left, self._hear, late=self.node.timeout)

    def conclude(self, problems: list[Problem]) -> Json | None:
        """Send the results of the comparisons and the all-reduce; returns the `verdict`."""

        def answer(reports: dict[int, Json]) -> Json:
            self._reports |= reports
            return self._conclude(problems)

        seconds = soon(self.node.place.world_size)
        return self.meeting.exchange("last report", self.node.document(), seconds, answer)

    def _hear(self, reports: dict[int, Json]) -> Json:
        """On rank 0: answer the first reports."""
        self._reports = reports
        if len(reports) < self.node.place.world_size:  # without all nodes, an all-reduce could only hang
            return self._conclude([])
        rates = [rate for report in reports.values() for rate in report["measured"].get("gpu_flops", []) if rate]
        return {"ok": all(report["ok"] for report in reports.values()), "rate": median(rates) if rates else None}

    def _conclude(self, problems: list[Problem]) -> Json:
        verdict = self.verdict = _findings(self.node, self.meeting, self._reports, problems)
        listed = [vars(problem) for problem in verdict.problems]
        return {"verdict": {"ok": verdict.ok, "missing": verdict.missing[:_NAMED], "problems": listed}}


def _together(node: _Node, meeting: Meeting, clock: Callable[[], float], deadline: float) -> Findings:
    """Exchange reports, compare clocks and speeds, try an all-reduce, and return the verdict."""
    talk, problems = _Talk(node, meeting), []
    answer = talk.report(deadline)
    if answer is not None and "verdict" not in answer:  # all nodes reported: now the checks that need them all
        _compare_clocks(node, meeting, clock)
        _compare_speeds(node, answer["rate"])
        if node.place.world_size > 1 and answer["ok"]:
            problems = _try_collective(node, meeting)
        node.write()
        answer = talk.conclude(problems)
    node.write()
    if answer is None:
        return _never_met(node, meeting)
    if talk.verdict is not None:
        return talk.verdict
    # Every other rank knows its own report and the summary, which is all that it must know to exit correctly.
    summary = answer["verdict"]
    common = [Problem(**problem) for problem in summary["problems"]]
    return Findings([node.document()], summary["missing"], common, others_ok=summary["ok"])


# What is concluded from reports, and from silence.


def _findings(node: _Node, meeting: Meeting, reports: dict[int, Json], problems: list[Problem]) -> Findings:
    """Combine, on rank 0, the nodes' reports with what is known of those that did not answer."""
    silent = sorted({*range(node.place.world_size)} - {*meeting.present})
    files = {rank: node.read_file(node.names[rank]) for rank in silent}
    missing = [node.names[rank] for rank in silent]
    healthy = [file for file in files.values() if file is not None and file["ok"]]
    # Nobody answered, yet every node's file says that it is healthy: then the address is wrong, and not the nodes.
    if silent and len(reports) == 1 and len(healthy) == len(silent):
        return Findings([*reports.values(), *healthy], missing, [_unreachable(node, meeting)])
    own = node.document()
    for rank in silent:
        report = silent_node(node.names[rank], rank, files[rank] or reports.get(rank), node.timeout, own)
        reports[rank] = report
        node.write_file(report)  # `job end` reads the files to know which nodes to exclude
    return Findings([reports[rank] for rank in sorted(reports)], missing, problems)


def _never_met(node: _Node, meeting: Meeting) -> Findings:
    """Report that rank 0 does not answer; every other node finds that out by itself."""
    name, own = node.names[0], node.document()
    problem = _unreachable(node, meeting)
    # If rank 0 has written its file, it has started: the network is at fault, and its node must not be excluded.
    if node.place.rank == 0 or node.read_file(name) is not None:
        return Findings([own], [], [problem], has_met=False)
    report = silent_node(name, 0, None, node.timeout, own)
    node.write_file(report)
    return Findings([report, own], [name], [problem], has_met=False)


def _unreachable(node: _Node, meeting: Meeting) -> Problem:
    where = f"{node.place.address}:{meeting.port}"
    why = f": {meeting.error}" if meeting.error else ""
    message = f"the nodes cannot connect to {node.names[0]} within {format_seconds(node.timeout)}{why}"
    fix = "check that MASTER_ADDR is that node's address, the port is free, and no firewall is between the nodes"
    return Problem(message, where, fix)


# The checks that need all nodes.


def _compare_clocks(node: _Node, meeting: Meeting, clock: Callable[[], float]) -> None:
    """Read all clocks at the same moment and compare with the median; with two nodes, the first one's is taken."""
    seconds = soon(node.place.world_size)
    meeting.exchange("now", True, seconds, lambda answers: True)  # a barrier: the answer reaches all nodes together
    moment = clock()
    usual = meeting.exchange("clock", moment, seconds, _usual)
    if usual is None:
        return
    offset = moment - usual
    node.health.measured["clock_offset"] = round(offset, 3)
    if abs(offset) > _CLOCKS_APART:
        message = f"its clock is {format_seconds(abs(offset))} {'ahead' if offset > 0 else 'behind'}"
        node.health.problems.append(Problem(message, "clock", "have its time service (chrony, ntpd) repaired"))


def _usual(moments: dict[int, float]) -> float:
    return median(moments.values()) if len(moments) > 2 else moments[min(moments)]


def _compare_speeds(node: _Node, rate: float | None) -> None:
    """Compare this node's GPUs with the median of all nodes; GPUs slow within their node are already reported."""
    if rate and node.place.world_size > 1 and not node.health.problems:
        own = node.health.measured.get("gpu_flops", [])
        node.health.problems += slow(own, "the median of all nodes'", rate)


def _try_collective(node: _Node, meeting: Meeting) -> list[Problem]:
    """Try an all-reduce over all nodes; returns the failure, on this or on another node, if there is one."""
    error, deadline = "", time.monotonic() + node.timeout
    try:
        right, rate = within(node.timeout, lambda: _all_reduce(meeting, node.timeout))
        node.health.measured["all_reduce"] = round(rate)
        if not right:
            node.health.problems.append(Problem("an all-reduce gave a wrong result", "network", "exclude the node"))
    except TimeoutError:
        error = f"did not end within {format_seconds(node.timeout)}"
    except (RuntimeError, OSError) as failure:
        error = str(failure).strip().partition("\n")[0]
    # Errors travel through the store, which works even if the collective's network does not.
    seconds = deadline - time.monotonic() + soon(node.place.world_size)
    failed = meeting.exchange("all-reduce", error, seconds, _failures)
    if not failed or not failed["nodes"]:
        return []
    names = ", ".join(node.names[rank] for rank in failed["ranks"])
    more = f" and {failed['nodes'] - _NAMED} more" if failed["nodes"] > _NAMED else ""
    fix = "check NCCL_SOCKET_IFNAME and NCCL_IB_HCA (GLOO_SOCKET_IFNAME on CPUs); NCCL_DEBUG=INFO shows details"
    return [Problem(f"an all-reduce failed on {names}{more}: {failed['first']}", "network", fix)]


def _failures(errors: dict[int, str]) -> Json:
    failed = [rank for rank, error in sorted(errors.items()) if error]
    return {"nodes": len(failed), "ranks": failed[:_NAMED], "first": errors[failed[0]] if failed else ""}


def _all_reduce(meeting: Meeting, timeout: float) -> tuple[bool, float]:
    """Return whether a sum over all nodes is correct on this one, and the bytes/s that each node sent for it."""
    place, where = meeting.place, device.device()
    if where.type == "cuda":
        torch.cuda.set_device(where)
        # Otherwise NCCL's own watchdog kills this process when a peer dies, before it can name that peer.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    dist.init_process_group(
        device.backend(), store=meeting.connect(timeout), rank=place.rank, world_size=place.world_size,
        timeout=timedelta(seconds=timeout + _BACKEND_SECONDS),
    )  # fmt: skip
    count = _GPU_NUMBERS if where.type == "cuda" else _CPU_NUMBERS
    # Small whole numbers, different on every rank: their sum is exact in fp32, whatever the order of additions.
    pattern = torch.arange(count, device=where, dtype=torch.float32).remainder_(1000.0)
    numbers = pattern + place.rank
    dist.all_reduce(numbers)
    size = place.world_size
    right = bool((numbers == pattern * size + size * (size - 1) // 2).all())
    device.synchronize()
    started = time.perf_counter()  # the first all-reduce sets up connections; only the second one is timed
    dist.all_reduce(numbers)
    device.synchronize()
    seconds = time.perf_counter() - started
    return right, 2 * (size - 1) / size * numbers.nbytes / seconds  # bytes that a ring all-reduce sends per node

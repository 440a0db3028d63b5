"""The preflight: every node looks at itself, then all compare clocks and add up numbers together, before a run starts.

One process a node. They meet in a key-value store that rank 0 opens, which needs no GPU and no NCCL: so a node whose
GPUs or network adapters are dead can still say so, and one that does not answer is known by its name. Only where all
nodes are sound is the collective tried. Everything that can block does so in a thread that is not waited for beyond its
time; the process must therefore end by `os._exit`.
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
_LEFT_BEHIND_SECONDS = 60.0  # a collective that hangs is given up by whoever waits for it, not by the backend
_CLOCKS_APART = 5.0
_FILE_SECONDS = 5.0
_NAMED = 16  # nodes; an answer of all names to all nodes would be quadratic
_GPU_NUMBERS, _CPU_NUMBERS = 64 * 2**20, 2**20


@contextmanager
def examine(
    run: RunDir | None, gpus: int | None, timeout: float, clock: Callable[[], float] = time.time
) -> Iterator[Findings]:
    """Examine this node and, with the others, the whole job; the nodes part when the block ends.

    So that rank 0 can tell what was found before another process ends, which may have the launcher kill the rest.

    Args:
        run: the run directory, which gets a file a node; absent: no disk is looked at, and no file written.
        gpus: that each node must have; absent: what SLURM says that it has, if anything does.
        timeout: seconds for the nodes' own checks and for meeting; the collective has as many again.
        clock: this node's time of day, in seconds since 1970.

    Raises:
        LaunchError: there are several processes on a node, or the environment is incomplete.
    """
    started = time.monotonic()
    place = rendezvous.read(os.environ)
    if place.local_rank:
        what = f"this is process {place.local_rank} of its node, and one is enough"
        raise LaunchError(what, "megacode preflight", "srun --ntasks-per-node=1 megacode preflight")
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
    """Return how many GPUs of a node SLURM has given to this job; None where it does not say."""
    count = environment.get("SLURM_GPUS_ON_NODE", "")
    return int(count) if count.isdigit() else None


class _Node:
    """This node, what it found out about itself, and its file."""

    def __init__(self, run: RunDir | None, place: Rendezvous, timeout: float) -> None:
        self.run, self.place, self.timeout = run, place, timeout
        self.names = node_names(os.environ, place.world_size)
        self.name = node_name(os.environ, platform.node())
        self.names[place.rank] = self.name
        self.health = NodeHealth()
        self.doing = ""

    def look(self, todo: dict[str, Callable[[NodeHealth], None]]) -> None:
        """Make the node's own checks, as far as there is time."""
        deadline = time.monotonic() + _OWN_SHARE * self.timeout
        for name, check in todo.items():
            self.doing = name
            self.write()
            try:
                within(deadline - time.monotonic(), lambda check=check: check(self.health))  # type: ignore[misc]
            except TimeoutError:
                what = f"its check ({name}) did not end within {format_seconds(_OWN_SHARE * self.timeout)}"
                fix = "leave the node out, or give more time: --timeout"
                self.health.problems.append(Problem(what, self.health.looks_at or name, fix))
                break
            except Exception as error:  # whatever it is, it is this node's, and the others must hear of it
                what = f"failed: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
                where = self.health.looks_at or name
                self.health.problems.append(Problem(what, where, "leave the node out and have it looked at"))
        self.doing = ""
        self.write()

    def document(self) -> Json:
        """Return what the node says of itself; while a check is under way, the node counts as failed."""
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
        """Write the node's file; a disk that does not take it is found by the check of the disk."""
        self.write_file(self.document())

    def write_file(self, document: Json) -> None:
        """Write the file of a node."""
        if self.run is not None:
            path = self.run.preflight / f"{document['node']}.json"
            with suppress(OSError, TimeoutError):
                within(_FILE_SECONDS, lambda: write_json(path, document))

    def read_file(self, name: str) -> Json | None:
        """Return what another node has left in its file at this very start, if anything."""
        if self.run is None:
            return None
        try:
            path = self.run.preflight / f"{name}.json"
            found: Json = within(_FILE_SECONDS, lambda: json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TimeoutError):
            return None
        return found if same_start(found, self.document()) else None


class _Talk:
    """What the nodes say to each other. Rank 0 hears all, and gives each the little that it needs.

    Attributes:
        verdict: on rank 0, of all nodes, once there is one.
    """

    def __init__(self, node: _Node, meeting: Meeting) -> None:
        self.node, self.meeting = node, meeting
        self.verdict: Findings | None = None
        self._reports: dict[int, Json] = {}

    def report(self, deadline: float) -> Json | None:
        """Tell what the node found itself.

        Returns:
            `ok`, and `rate`: the median FLOP/s of all GPUs; or, where nodes are missing, the `verdict`. None where
            rank 0 does not answer.
        """
        left = deadline - time.monotonic()
        return self.meeting.exchange("report", self.node.document(), left, self._hear, late=self.node.timeout)

    def conclude(self, problems: list[Problem]) -> Json | None:
        """Tell what the node found since then; returns the `verdict`."""

        def answer(reports: dict[int, Json]) -> Json:
            self._reports |= reports
            return self._conclude(problems)

        seconds = soon(self.node.place.world_size)
        return self.meeting.exchange("last report", self.node.document(), seconds, answer)

    def _hear(self, reports: dict[int, Json]) -> Json:
        self._reports = reports
        if len(reports) < self.node.place.world_size:
            return self._conclude([])
        rates = [rate for report in reports.values() for rate in report["measured"].get("gpu_flops", []) if rate]
        return {"ok": all(report["ok"] for report in reports.values()), "rate": median(rates) if rates else None}

    def _conclude(self, problems: list[Problem]) -> Json:
        found = self.verdict = _findings(self.node, self.meeting, self._reports, problems)
        said = [vars(problem) for problem in found.problems]
        return {"verdict": {"ok": found.ok, "missing": found.missing[:_NAMED], "problems": said}}


def _together(node: _Node, meeting: Meeting, clock: Callable[[], float], deadline: float) -> Findings:
    """Meet the other nodes, compare clocks and speeds, add up numbers, and tell what comes of it."""
    talk, problems = _Talk(node, meeting), []
    told = talk.report(deadline)
    if told is not None and "verdict" not in told:
        _compare_clocks(node, meeting, clock)
        _compare_speeds(node, told["rate"])
        if node.place.world_size > 1 and told["ok"]:
            problems = _try_collective(node, meeting)
        node.write()
        told = talk.conclude(problems)
    node.write()
    if told is None:
        return _never_met(node, meeting)
    if talk.verdict is not None:
        return talk.verdict
    heard = told["verdict"]
    found = [Problem(**problem) for problem in heard["problems"]]
    return Findings([node.document()], heard["missing"], found, others_ok=heard["ok"])


def _findings(node: _Node, meeting: Meeting, reports: dict[int, Json], problems: list[Problem]) -> Findings:
    """Put together, on rank 0, what the nodes say, and what is known of those that say nothing."""
    silent = sorted({*range(node.place.world_size)} - {*meeting.present})
    left = {rank: node.read_file(node.names[rank]) for rank in silent}
    missing = [node.names[rank] for rank in silent]
    sound = [file for file in left.values() if file is not None and file["ok"]]
    if silent and len(reports) == 1 and len(sound) == len(silent):
        return Findings([*reports.values(), *sound], missing, [_unreachable(node, meeting)])
    own = node.document()
    for rank in silent:
        told = silent_node(node.names[rank], rank, left[rank] or reports.get(rank), node.timeout, own)
        reports[rank] = told
        node.write_file(told)
    return Findings([reports[rank] for rank in sorted(reports)], missing, problems)


def _never_met(node: _Node, meeting: Meeting) -> Findings:
    """Tell of rank 0, which does not answer; the other nodes find that out as well, each for itself."""
    name, own = node.names[0], node.document()
    problem = _unreachable(node, meeting)
    if node.place.rank == 0 or node.read_file(name) is not None:
        return Findings([own], [], [problem], has_met=False)
    told = silent_node(name, 0, None, node.timeout, own)
    node.write_file(told)
    return Findings([told, own], [name], [problem], has_met=False)


def _unreachable(node: _Node, meeting: Meeting) -> Problem:
    where = f"{node.place.address}:{meeting.port}"
    why = f": {meeting.error}" if meeting.error else ""
    what = f"the nodes do not meet at {node.names[0]} within {format_seconds(node.timeout)}{why}"
    fix = "is MASTER_ADDR that node's address, the port free, and no firewall between the nodes?"
    return Problem(what, where, fix)


def _compare_clocks(node: _Node, meeting: Meeting, clock: Callable[[], float]) -> None:
    """Read all clocks at one moment; of two that differ, the first node's is believed."""
    seconds = soon(node.place.world_size)
    meeting.exchange("now", True, seconds, lambda said: True)
    moment = clock()
    usual = meeting.exchange("clock", moment, seconds, _usual)
    if usual is None:
        return
    offset = moment - usual
    node.health.measured["clock_offset"] = round(offset, 3)
    if abs(offset) > _CLOCKS_APART:
        what = f"its clock is {format_seconds(abs(offset))} {'ahead' if offset > 0 else 'behind'}"
        node.health.problems.append(Problem(what, "clock", "have its time service (chrony, ntpd) looked at"))


def _usual(moments: dict[int, float]) -> float:
    return median(moments.values()) if len(moments) > 2 else moments[min(moments)]


def _compare_speeds(node: _Node, rate: float | None) -> None:
    """Compare this node's GPUs with those of all nodes; those that are slow among their own have been named."""
    if rate and node.place.world_size > 1 and not node.health.problems:
        own = node.health.measured.get("gpu_flops", [])
        node.health.problems += slow(own, "the median of all nodes'", rate)


def _try_collective(node: _Node, meeting: Meeting) -> list[Problem]:
    """Add up numbers over all nodes; returns what failed, on this or on another node."""
    error, deadline = "", time.monotonic() + node.timeout
    try:
        right, rate = within(node.timeout, lambda: _all_reduce(meeting, node.timeout))
        node.health.measured["all_reduce"] = round(rate)
        if not right:
            node.health.problems.append(Problem("an all-reduce came out wrong", "network", "leave the node out"))
    except TimeoutError:
        error = f"did not end within {format_seconds(node.timeout)}"
    except (RuntimeError, OSError) as failure:
        error = str(failure).strip().partition("\n")[0]
    seconds = deadline - time.monotonic() + soon(node.place.world_size)
    failed = meeting.exchange("all-reduce", error, seconds, _failures)
    if not failed or not failed["nodes"]:
        return []
    names = ", ".join(node.names[rank] for rank in failed["ranks"])
    more = f" and {failed['nodes'] - _NAMED} more" if failed["nodes"] > _NAMED else ""
    fix = "NCCL_DEBUG=INFO says more; are NCCL_SOCKET_IFNAME and NCCL_IB_HCA (GLOO_SOCKET_IFNAME on CPUs) right?"
    return [Problem(f"an all-reduce failed on {names}{more}: {failed['first']}", "network", fix)]


def _failures(errors: dict[int, str]) -> Json:
    failed = [rank for rank, said in sorted(errors.items()) if said]
    return {"nodes": len(failed), "ranks": failed[:_NAMED], "first": errors[failed[0]] if failed else ""}


def _all_reduce(meeting: Meeting, timeout: float) -> tuple[bool, float]:
    """Return whether a sum over all nodes is right on this one, and the bytes/s each node sent for it."""
    place, where = meeting.place, device.device()
    if where.type == "cuda":
        torch.cuda.set_device(where)
        # Otherwise NCCL's own watchdog ends this process when a partner dies, before it can name that partner.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    dist.init_process_group(
        device.backend(), store=meeting.connect(timeout), rank=place.rank, world_size=place.world_size,
        timeout=timedelta(seconds=timeout + _LEFT_BEHIND_SECONDS),
    )  # fmt: skip
    count = _GPU_NUMBERS if where.type == "cuda" else _CPU_NUMBERS
    pattern = torch.arange(count, device=where, dtype=torch.float32).remainder_(1000.0)
    numbers = pattern + place.rank
    dist.all_reduce(numbers)
    size = place.world_size
    right = bool((numbers == pattern * size + size * (size - 1) // 2).all())
    device.synchronize()
    started = time.perf_counter()
    dist.all_reduce(numbers)
    device.synchronize()
    seconds = time.perf_counter() - started
    return right, 2 * (size - 1) / size * numbers.nbytes / seconds

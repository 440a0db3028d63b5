"""Results of the preflight, as files and as a table. No torch, so that login nodes and `job end` can read them.

Each node writes `RUN_DIR/preflight/NODE.json` before each check and after the last: a node that freezes leaves the
name of the check. For a node that never answered, one that did writes the file.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from megacode.base.errors import Problem
from megacode.base.files import Json
from megacode.base.tables import FigureTable
from megacode.base.units import format_bytes, format_rate, format_seconds

_NARROWEST = 100  # columns; a job's log is not a terminal, and a table folded to 80 columns is hard to read
_NO_ANSWER = "exclude it (sbatch --exclude), and check that it is up and can reach the other nodes"


@dataclass
class Findings:
    """The verdict on all nodes of a job.

    Attributes:
        nodes: on rank 0 the report of each node, by rank; elsewhere this node's. For a node that did not answer, what
            is known of it. Keys: `node`, `rank`, `ok`, `problems` (`what`, `where`, `fix`), `measured`, `time`,
            `doing`, `job`, `restart`, `step`.
        missing: names of the nodes that did not answer.
        problems: problems of no particular node, such as the network between them.
        seconds: duration of the preflight.
        has_met: whether this node reached rank 0, so that rank 0 reports for all.
        others_ok: on other ranks, rank 0's verdict on all nodes; they know only their own report.
    """

    nodes: list[Json]
    missing: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0
    has_met: bool = True
    others_ok: bool = True

    @property
    def failed(self) -> list[str]:
        """Names of the nodes that must not train."""
        return [node["node"] for node in self.nodes if not node["ok"]]

    @property
    def ok(self) -> bool:
        """Whether a run may start."""
        return self.others_ok and not self.failed and not self.missing and not self.problems

    def document(self) -> Json:
        """Return the verdict as JSON."""
        problems = [vars(problem) for problem in self.problems]
        return {
            "ok": self.ok, "failed": self.failed, "missing": self.missing, "problems": problems,
            "seconds": round(self.seconds, 3), "nodes": self.nodes,
        }  # fmt: skip


def node_name(environment: Mapping[str, str], host: str) -> str:
    """Return this node's name in SLURM, which is what `--exclude` takes; outside SLURM the host's name."""
    return environment.get("SLURMD_NODENAME") or host


def node_names(environment: Mapping[str, str], nodes: int) -> list[str]:
    """Return the names of all nodes by rank, one process per node; names like `rank 3` if SLURM gives none."""
    # A step may use fewer nodes than its job has.
    listed = expand(environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "")))
    return listed if len(listed) == nodes else [f"rank {rank}" for rank in range(nodes)]


def expand(nodes: str) -> list[str]:
    """Return the hosts in SLURM's short form: `gpu[003-004,12],login1` is gpu003, gpu004, gpu12, login1."""
    # Split at commas outside brackets. `scontrol show hostnames` does the same, but a container may lack it.
    return [name for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes) for name in _expand_part(part)]


def _expand_part(part: str) -> list[str]:
    match = re.search(r"\[([^\]]*)\]", part)
    if not match:
        return [part]
    names, rests = [], _expand_part(part[match.end() :])
    for span in match[1].split(","):  # numbers keep their leading zeros
        low, _, high = span.partition("-")
        for number in range(int(low), int(high or low) + 1):
            names += [f"{part[: match.start()]}{number:0{len(low)}d}{rest}" for rest in rests]
    return names


def silent_node(name: str, rank: int, left: Json | None, timeout: float, own: Json) -> Json:
    """Return a report on a node that did not answer.

    Args:
        name, rank: of the node.
        left: its own file of this very start, if there is one.
        timeout: seconds that the others waited.
        own: the report of the node that writes this one.
    """
    within = f"within {format_seconds(timeout)}"
    if left is None:
        message = f"did not start {within}"
    elif left["doing"]:
        message = f"stopped or froze during a check ({left['doing']}): not done after {format_seconds(timeout)}"
    else:
        message = f"passed its own checks, but did not answer the others {within}"
    start = {key: own[key] for key in ("job", "restart", "step")}
    known = left or {"node": name, "rank": rank, "problems": [], "measured": {}, "doing": "", **start}
    problems = [*known["problems"], vars(Problem(message, "", _NO_ANSWER))]
    return {**known, "ok": False, "problems": problems, "time": round(time.time(), 3), "told_by": own["node"]}


def same_start(one: Json, other: Json) -> bool:
    """Return whether two nodes' reports are from the same start of the same job."""
    return all(one.get(key) == other.get(key) for key in ("job", "restart", "step"))


def render(verdict: Findings, console: Console) -> None:
    """Print one line per node, then the problems, then the verdict."""
    figures = ("GPUs", "slowest", "memory", "disk", "writes", "clock", "network")
    table = FigureTable("node", *figures, "", figures=figures, padding=(0, 1, 0, 0))
    for node in verdict.nodes:
        mark = Text("ok", style="green") if node["ok"] else Text("FAILED", style="red")
        table.add_row(node["node"], *_figures(node["measured"]), mark)
    console.width = max(_NARROWEST, console.width)
    console.print(table)
    for node in verdict.nodes:
        for problem in node["problems"]:
            _print(console, f"{node['node']}: {Problem(**problem).render('').lstrip()}")
    for problem in verdict.problems:
        _print(console, problem.render("").lstrip())
    _print(console, summary(verdict))


def summary(verdict: Findings) -> str:
    """Return the verdict in a line."""
    took = f"({format_seconds(verdict.seconds)})"
    count = f"{len(verdict.nodes)} node{'s' * (len(verdict.nodes) != 1)}"
    if verdict.ok:
        return f"Preflight passed: {count} ready to train {took}"
    if not verdict.failed:  # the nodes passed, the network between them did not
        return f"Preflight failed: {count} passed alone, but not together {took}"
    return f"Preflight failed on {len(verdict.failed)} of {count}: {', '.join(verdict.failed)} {took}"


def _print(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)


def _figures(measured: Json) -> list[str]:
    """Return a row's cells; `-` for what was not measured."""
    rates = (
        measured.get("gpu_flops") or [measured["cpu_flops"]] if "cpu_flops" in measured else measured.get("gpu_flops")
    )
    return [
        str(measured.get("gpus", "-")),
        format_rate(min(rates), "FLOP/s") if rates else "-",
        format_bytes(measured["memory_free"]) if "memory_free" in measured else "-",
        format_bytes(measured["disk_free"]) if "disk_free" in measured else "-",
        f"{format_bytes(measured['disk_write'])}/s" if "disk_write" in measured else "-",
        f"{measured['clock_offset']:+.2f} s" if "clock_offset" in measured else "-",
        f"{format_bytes(measured['all_reduce'])}/s" if "all_reduce" in measured else "-",
    ]

#!/usr/bin/env python3
"""What a run asks of the file system, and of its other ranks, as ranks grow: opens, stats, bytes and collectives.

    python tools/bench/ranks.py measure [--code DIR] [--seconds 30] [--json FILE]
    python tools/bench/ranks.py simulate CONFIG [--ranks 64,512,4096] [--json FILE]
    python tools/bench/ranks.py watch [--ranks 64,512,4096] [--sources 6]

`measure` trains a small run on 4 real gloo ranks as 2 nodes, stops it and resumes it, and counts in each process what
it opens, asks for and reads, by kind of file. `--code` takes another copy of megacode, to compare with. What a watchdog
does in an hour is what it did in the run's seconds, times as many.

`simulate` builds a rank of the config for each slice of the model, without memory, and lets it stand for each of its
data-parallel ranks in turn. What all ranks would write and which bytes of which files they would read comes from the
functions that a save and a resume call. *before*: one file a rank, and the whole model on every rank (until c22156b).
Every rank's boxes are laid out; what is read is worked out for five ranks, and counted for all. *most*: files that one
rank opens; *on half*: the same where half as many ranks go on from the checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

ROOT = Path(__file__).resolve().parents[2]
RANKS, RANKS_A_NODE, GPUS_A_NODE = 4, 2, 8
KINDS = ("save", "resume", "sources", "signs of life", "others")
COUNTS = ("opens", "stats", "changes", "syncs", "bytes", "collectives")

app = typer.Typer(add_completion=False)

SHOWN = {
    "ranks": "ranks",
    "most before": "opens_a_rank_before",
    "most": "opens_a_rank",
    "on half": "opens_a_rank_on_half",
    "opens before": "opens_before",
    "opens": "opens",
    "GB before": "gigabytes_before",
    "GB": "gigabytes",
    "index MB": "index_megabytes",
    "planned, s": "planning_seconds",
}


class Counts:
    """What this process asks of files below a directory, by kind of file; and how often it talks to other ranks.

    Python tells of opens and of changes by audit events; stats, syncs and reads have none, so these are wrapped. What
    is read through a memory map is not seen.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.found = f"{root}/", {kind: dict.fromkeys(COUNTS, 0) for kind in KINDS}
        self.doing: str | None = "resume"
        # A hook stays for the life of the process, so each rank is a process of its own.
        sys.addaudithook(self._hear)
        for name in ("stat", "lstat"):
            setattr(os, name, self._counted(getattr(os, name)))
        for name in ("read", "pread", "preadv"):
            setattr(os, name, self._sized(getattr(os, name)))
        os.fsync = self._synced(os.fsync)

    def watch_collectives(self) -> None:
        """Count torch's collectives, of a start until its first iteration and of saves; one on objects is one."""
        import torch.distributed as dist

        from megacode.train.saving import Saver
        from megacode.train.trainer import Trainer

        for name in ("all_reduce", "broadcast_object_list", "all_gather_object", "gather_object", "barrier"):
            setattr(dist, name, self._collective(getattr(dist, name)))
        Trainer.step = self._during(None, Trainer.step)
        Saver.start, Saver.settle = self._during("save", Saver.start), self._during("save", Saver.settle)

    def _during(self, activity: str | None, original: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.doing = activity
            try:
                return original(*arguments, **keywords)
            finally:
                self.doing = None

        return call

    def _kind(self, path: object) -> str | None:
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if not text.startswith(self.root):
            return None
        parts = text.removeprefix(self.root).split("/")
        if parts[0] == "data":
            return "sources"
        if "checkpoints" in parts:
            return "save" if any(part.startswith(".iter_") for part in parts) else "resume"
        watched = ("heartbeats", "stacks", "hangs.jsonl", "run.lock")
        return "signs of life" if any(part in watched for part in parts) else "others"

    def _add(self, path: object, counter: str, count: int = 1) -> None:
        kind = self._kind(path)
        if kind is not None:
            self.found[kind][counter] += count

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._add(arguments[0], "opens")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            self._add(arguments[0], "changes")
        elif event in ("os.scandir", "os.listdir"):
            self._add(arguments[0], "stats")

    def _counted(self, original: Any) -> Any:
        def stat(path: Any, *arguments: Any, **keywords: Any) -> Any:
            self._add(path, "stats")
            return original(path, *arguments, **keywords)

        return stat

    def _place(self, descriptor: int) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            return ""

    def _sized(self, original: Any) -> Any:
        def read(descriptor: int, *arguments: Any) -> Any:
            data = original(descriptor, *arguments)
            self._add(self._place(descriptor), "bytes", data if isinstance(data, int) else len(data))
            return data

        return read

    def _synced(self, original: Any) -> Any:
        def fsync(descriptor: Any) -> Any:
            self._add(self._place(descriptor if isinstance(descriptor, int) else descriptor.fileno()), "syncs")
            return original(descriptor)

        return fsync

    def _collective(self, original: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.doing is not None:
                self.found[self.doing]["collectives"] += 1
            return original(*arguments, **keywords)

        return call


@app.command(hidden=True)
def rank(config: Path, root: Path, out: Path) -> None:
    """Train on this rank, as `megacode train` does, and write down what was counted."""
    counts, started = Counts(root), time.monotonic()
    import torch

    from megacode.cli import app as megacode

    torch.set_num_threads(1)
    counts.watch_collectives()
    code = 0
    try:
        megacode(["train", str(config)], standalone_mode=False)
    except SystemExit as error:
        code = int(error.code or 0)
    out.write_text(json.dumps({"code": code, "seconds": time.monotonic() - started, "counts": counts.found}))
    os._exit(0)


@app.command()
def measure(
    code: Annotated[Path, typer.Option(help="The megacode to measure.")] = ROOT,
    seconds: Annotated[float, typer.Option(help="How long the first run trains.")] = 30.0,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Count on real ranks: a run from its start to a stop, and its resume to another stop."""
    with tempfile.TemporaryDirectory(prefix="bench_ranks_") as folder:
        root = Path(folder).resolve()
        config = written_config(root)
        first = trained(code, root, config, seconds)
        again = trained(code, root, config, 5.0)
        saves = sum('"event": "save"' in line for line in (root / "run/events.jsonl").read_text().splitlines())
    counts = {
        "code": str(code),
        "a save": scaled(first, "save", 1 / max(1, saves - 1)),
        "a resume": scaled(again, "resume", 1.0),
        "sources, a start": scaled(again, "sources", 1.0),
        "an hour's watching": scaled(first, "signs of life", 3600 / first[0]["seconds"]),
    }
    print(f"{RANKS} ranks on {RANKS // RANKS_A_NODE} nodes; by rank")
    for activity, ranks in counts.items():
        if isinstance(ranks, list):
            print(activity)
            for name in COUNTS:
                print(f"  {name:10}" + "".join(f"{one[name]:>12,.0f}" for one in ranks))
    if json_file is not None:
        json_file.write_text(json.dumps(counts, indent=2) + "\n")


def scaled(ranks: list[dict[str, Any]], kind: str, factor: float) -> list[dict[str, float]]:
    """Return by rank what was counted of a kind, times a factor."""
    return [{name: one["counts"][kind][name] * factor for name in COUNTS} for one in ranks]


def written_config(root: Path) -> Path:
    """Write the golden run's data and a config that trains longer than anyone waits."""
    import runpy

    runpy.run_path(str(ROOT / "tools" / "compare_losses.py"))["write_golden_data"](root / "data")
    document = yaml.safe_load((ROOT / "tests" / "golden" / "golden.yaml").read_text())
    for source in document["sources"].values():
        source["path"] = str(root / source["path"])
    rate = {"schedule": "constant", "peak": 1.0e-3}
    blend = document["phases"][0]["blend"]
    document["phases"] = [{"name": "all", "iterations": 1_000_000, "blend": blend, "learning_rate": rate}]
    document["train"] |= {"micro_batch_size": 1}
    document["checkpoint"] = {"every": "1000000 iterations", "keep_last": 2}
    document["run_dir"] = str(root / "run")
    document.pop("validation")
    path = root / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def trained(code: Path, root: Path, config: Path, seconds: float) -> list[dict[str, Any]]:
    """Train on all ranks for some seconds, let the run save and stop, and return what each rank counted."""
    port, processes = free_port(), []
    for number in range(RANKS):
        place = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(RANKS)}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        node = {"MEGACODE_NODE": f"n{number // RANKS_A_NODE}", "PYTHONPATH": str(code.resolve())}
        command = [sys.executable, __file__, "rank", str(config), str(root), str(root / f"{number}.json")]
        with (root / f"{number}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(command, env={**os.environ, **place, **meeting, **node}, stdout=log, stderr=log)
            )
    began = steps(root)
    while steps(root) <= began and all(process.poll() is None for process in processes):
        time.sleep(0.2)
    # Looks and heartbeats are seconds apart: only some minutes give a steady figure of them.
    time.sleep(seconds)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait(timeout=300)
    files = [root / f"{number}.json" for number in range(RANKS)]
    if not all(path.exists() for path in files):
        sys.exit((root / "0.log").read_text()[-3000:])
    answers = [json.loads(path.read_text()) for path in files]
    for path in files:
        path.unlink()
    return answers


def steps(root: Path) -> int:
    """Return how many lines the run's metrics have."""
    path = root / "run" / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def free_port() -> int:
    """Return a port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@app.command()
def simulate(
    config: Path,
    ranks: Annotated[str, typer.Option(help="Numbers of ranks.")] = "64,512,4096",
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Count what a save and a resume of so many ranks would open and read."""
    rows = []
    for number in map(int, ranks.split(",")):
        command = [sys.executable, __file__, "simulated", str(config), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if len(rows) == 1:
            print("".join(f"{name:>13}" for name in SHOWN))
        print("".join(f"{rows[-1][key]:>13,}" for key in SHOWN.values()), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")


@app.command()
def watch(
    ranks: Annotated[str, typer.Option(help="Numbers of ranks.")] = "64,512,4096",
    sources: Annotated[int, typer.Option(help="Sources of the run.")] = 6,
) -> None:
    """Count what a start's checks, a quiet hour, a hang and the preflight's meeting cost so many ranks."""
    from rank_watching import row

    rows = [row(int(number), GPUS_A_NODE, sources) for number in ranks.split(",")]
    for name in rows[0]:
        print(f"{name:<22}" + "".join(f"{line[name]:>15,}" for line in rows))


@app.command(hidden=True)
def simulated(config: Path, ranks: int) -> None:
    """Count for one number of ranks, in a process of its own."""
    from rank_simulation import Simulation, touched

    from megacode.checkpoint.regions import lay_out

    sim = Simulation(config, ranks)
    slots = [sim.slots(rank) for rank in range(ranks)]
    started = time.process_time()
    plan = lay_out(slots, [rank // GPUS_A_NODE for rank in range(ranks)])
    index = plan.index.dumps()
    planned = time.process_time() - started
    old = lay_out(slots, range(ranks))
    # Five ranks stand for all, so totals of reads are estimates. Writes are laid out for every rank.
    sample = sorted({0, 1, ranks // 3, ranks // 2, ranks - 1})
    after = [touched(plan.index, sim.wanted(rank)) for rank in sample]
    half = Simulation(config, ranks // 2)
    fewer = [touched(plan.index, half.wanted(rank)) for rank in sample if rank < half.ranks]
    before = [touched(old.index, sim.wanted_before(rank)) for rank in sample]
    mean = ranks / len(sample)
    row = {
        "ranks": ranks,
        "files": len(plan.index.files),
        "checkpoint_bytes": sum(region.bytes for region in plan.regions),
        "boxes": sum(map(len, slots)),
        "index_megabytes": round(len(index) / 1e6, 1),
        "planning_seconds": round(planned, 1),
        "opens_a_rank": max(files for files, _ in after),
        "opens": round(sum(files for files, _ in after) * mean),
        "gigabytes": round(sum(size for _, size in after) * mean / 1e9),
        "opens_a_rank_on_half": max(files for files, _ in fewer),
        "opens_a_rank_before": max(files for files, _ in before),
        "opens_before": round(sum(files for files, _ in before) * mean),
        "gigabytes_before": round(sum(size for _, size in before) * mean / 1e9),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    app()

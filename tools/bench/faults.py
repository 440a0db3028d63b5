"""Fault injection: a small run on two ranks is hit again and again, started again, and compared with one left alone.

    python tools/bench/faults.py [--faults 100] [--seed 1] [--kinds kill_rank,truncate] [--ranks 2,4] [--json FILE]

At random moments ranks, their parent or all are killed, also in the middle of a save or of a start; the run is asked to
stop; its newest checkpoint is truncated, changed by one bit, or loses a file; `latest` is lost or wrong; ranks see
different configs or an old state of the directory; checkpoints are gone; a clean-up fails; the disk is full for a while
(on a small tmpfs; needs the right to mount). At the end every iteration must stand in metrics.jsonl
once, with the planned samples; no loss, gradient norm or tensor of the last checkpoint (weights, moments, random
states) may differ from the undisturbed run's by one bit. Exit code 1 if anything does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from fault_kinds import DAMAGES, KILLS, PATIENCE, ROOT, SAVE_EVERY, STOPS, BrokenRunError, Run, fill_disk
from fault_report import Row, render, summary
from fault_seams import NEED_MOUNTS, SEAMS
from rich.console import Console

from megacode.base.files import RunDir, write_json
from megacode.base.logs import setup_logging
from megacode.metrics.reader import read_events, read_metrics
from megacode.status.document import read_status
from megacode.status.sample_proof import prove_samples

KINDS = [*KILLS, *STOPS, *DAMAGES, *SEAMS, fill_disk.__name__]
LAYOUTS = {2: "{distributed_optimizer: true}", 4: "{tensor: 2, sequence_parallel: true}"}
LONGEST_STEP = 2 * SAVE_EVERY  # iterations from one fault to the next, at most
DISK_MIB = 64
IN_START = 0.15  # share of the kills that come while the run starts
LONGEST_START = 8.0  # seconds
# The parent dies by the signal, or ends with 1 because a rank did.
KILLED = (-signal.SIGKILL, 1)
STOPPED = (75,)
# No times and no rates: they differ in any two runs.
COMPARED = ("loss", "grad_norm", "loss_by_source", "samples_by_source", "samples_digest", "learning_rate", "skipped")


class Campaign:
    """One run, hit by a list of faults, until it is done.

    Args:
        run: not started yet.
        kinds: of the faults, in order.
        chance: decides when and where.

    Attributes:
        rows: the faults so far.
    """

    def __init__(self, run: Run, kinds: list[str], chance: random.Random) -> None:
        self._run, self._kinds, self._chance = run, kinds, chance
        self.rows: list[Row] = []

    def carry_out(self) -> None:
        """Run to the end, through all faults.

        Raises:
            BrokenRunError: the run needs a hand.
        """
        self._run.start()
        try:
            for kind in self._kinds:
                self._fault(kind)
            self._recovered()
            self._run.ended((0,))
        finally:
            self._run.kill()

    def _fault(self, kind: str) -> None:
        """Let the run come somewhere, do it, and start the run again where it ended."""
        run, chance = self._run, self._chance
        if self._in_start(kind):
            time.sleep(chance.uniform(0, LONGEST_START))
        else:
            self._recovered()
            # Not before the second checkpoint: damage to the only one would leave nothing to resume from.
            run.reach(max(run.iteration, 2 * SAVE_EVERY) + chance.randint(1, LONGEST_STEP))
            # Anywhere in an iteration, and not just behind its line in metrics.jsonl.
            time.sleep(chance.uniform(0, 0.05))
        if kind == fill_disk.__name__:
            self.rows.append(self._row(kind))
            fill_disk(run, chance)
            self._revive()
            return
        # Damage is done while nothing runs, after a kill or after an orderly stop.
        how = kind if kind in KILLS | STOPS else chance.choice(["kill_all", "terminate"])
        (KILLS | STOPS)[how](run, chance)
        # Recovery counts from here, so it includes the end of what was left of the run.
        struck = time.monotonic()
        run.ended(KILLED if how in KILLS else STOPPED)
        self.rows.append(dataclasses.replace(self._row(kind), struck=struck))
        if kind in DAMAGES | SEAMS:
            (DAMAGES | SEAMS)[kind](run, chance)
        run.start()

    def _in_start(self, kind: str) -> bool:
        possible = kind in KILLS and kind != "kill_in_save" and bool(self.rows)
        return possible and self._chance.random() < IN_START

    def _row(self, kind: str) -> Row:
        """Return a row for where the run stands now."""
        starts, iteration = len(self._starts()), self._run.iteration
        # A start that was hit before its first iteration has none to lose.
        begun = not self.rows or starts > self.rows[-1].starts
        best = max([iteration, *(row.iteration for row in self.rows)])
        return Row(kind, best, iteration if begun else None, struck=time.monotonic(), starts=starts)

    def _revive(self) -> None:
        """Start the run again, if the full disk has ended it; what fails in the background shows at the next save."""
        run = self._run
        assert run.process is not None
        aim, deadline = run.iteration + SAVE_EVERY + 1, time.monotonic() + PATIENCE
        while run.iteration < aim and run.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        row = self.rows[-1]
        row.position = run.iteration
        row.iteration = max(row.iteration, row.position)
        if run.process.poll() is not None:
            run.start()

    def _recovered(self) -> None:
        """Wait until the run is beyond where it was at every fault, and write down what that took."""
        for row in [row for row in self.rows if row.seconds is None]:
            self._run.reach(row.iteration + 1)
            row.seconds = round(time.monotonic() - row.struck, 3)
            following = self._starts()[row.starts :]
            if following and row.position is not None:
                row.lost = max(0, row.position - following[0])

    def _starts(self) -> list[int]:
        """Return the iteration that each start so far resumed from."""
        events = read_events(self._run.files)
        return [event["iteration"] for event in events if event["event"] in ("start", "resume")]


def differences(run: RunDir, reference: RunDir) -> Iterator[str]:
    """Yield what tells a finished run from the undisturbed one, and its samples from the plan."""
    proof = prove_samples(run.path)
    yield from (f"iteration {row['iteration']}: {row['what']}" for row in proof["differing"])
    if not proof["complete"]:
        yield f"it ended at sample {proof['consumed_samples']}"
    mine, theirs = _measured(run), _measured(reference)
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            yield f"{key[0]} at iteration {key[1]}: {mine.get(key)}, undisturbed {theirs.get(key)}"
    yield from _tensor_differences(*(item.checkpoint(item.iterations()[-1]) for item in (run, reference)))


def _measured(run: RunDir) -> dict[tuple[str, int], dict[str, Any]]:
    lines = read_metrics(run.metrics, "train", "validation")
    return {(line["kind"], line["iteration"]): {key: line.get(key) for key in COMPARED} for line in lines}


def _tensor_differences(*checkpoints: Path) -> Iterator[str]:
    from megacode.checkpoint.reader import Reader

    mine, theirs = map(Reader, checkpoints)
    for name in sorted(mine.tensors.keys() | theirs.tensors.keys()):
        if name not in mine.tensors or name not in theirs.tensors:
            yield f"tensor {name} is in one of the last checkpoints only"
        # NaN is unequal to itself, so it is reported even where both have it.
        elif not torch.equal(mine.whole(name), theirs.whole(name)):
            yield f"tensor {name} differs"


def write_config(folder: Path, iterations: int) -> None:
    """Write data sets and config of a small run of three phases, with dropout."""
    runpy.run_path(str(ROOT / "tools" / "compare_losses.py"))["write_golden_data"](folder / "data")
    document = yaml.safe_load((ROOT / "tests" / "golden" / "golden.yaml").read_text())
    document["name"] = "faults"
    # Dropout puts the random states into every loss: a resume that loses them shows.
    document["model"] |= {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    document["validation"]["every"] = f"{3 * SAVE_EVERY} iterations"
    shares = (iterations - iterations // 2 - iterations // 4, iterations // 2, iterations // 4)
    for phase, length in zip(document["phases"], shares, strict=True):
        phase["iterations"] = length
    document["checkpoint"] = {"every": f"{SAVE_EVERY} iterations", "keep_last": 3, "keep_phase_ends": False}
    (folder / "run.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def undisturbed(folder: Path, nproc: int) -> Run:
    """Return a finished run of so many ranks that nothing has happened to."""
    name = "undisturbed" if nproc == 2 else f"undisturbed-{nproc}"
    # One reference for both ways of saving, which must not change a bit.
    run = Run(folder, folder / name, asynchronous=False, nproc=nproc, parallel=LAYOUTS[nproc])
    run.start()
    run.ended((0,), 10 * PATIENCE)
    return run


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[str]:
    """Mount a small tmpfs; yields why that cannot be done, empty where it was."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reason = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        reason = str(error)
    try:
        yield reason
    finally:
        if not reason:
            # Lazy, since a process that is still ending may hold a file open.
            subprocess.run(["umount", "--lazy", str(path)], check=False)


def draw_kinds(kinds: list[str], count: int, chance: random.Random) -> list[str]:
    """Return that many kinds, each as often as the others, in random order."""
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += chance.sample(kinds, len(kinds))
    return drawn[:count]


def attack(run: Run, reference: Run, kinds: list[str], chance: random.Random) -> dict[str, Any]:
    """Hit one run until it is done; return its faults, and what differs from the undisturbed one."""
    campaign = Campaign(run, kinds, chance)
    try:
        campaign.carry_out()
        problems = list(differences(run.files, reference.files))
    except BrokenRunError as error:
        last = campaign.rows[-1].kind if campaign.rows else "its first start"
        problems = [f"after {len(campaign.rows)} faults, the last {last}: {error}"]
    status = read_status(run.path)
    return {
        "async": run.asynchronous,
        "ranks": run.nproc,
        "faults": len(campaign.rows),
        "starts": len(status["starts"]),
        "iterations": status["progress"]["iteration"],
        "goodput": status["goodput"],
        "problems": problems,
        "rows": [dataclasses.asdict(row) for row in campaign.rows],
    }


def campaigns(
    folder: Path, faults: int, chance: random.Random, kinds: list[str], ways: list[tuple[int, bool]]
) -> dict[str, Any]:
    """Carry out all faults, shared out over the ways to run, and return the document that `render` prints.

    Args:
        folder: where everything is written.
        faults: how many.
        chance: decides which, when and where.
        kinds: of the faults.
        ways: numbers of ranks, each with whether checkpoints are written in the background.
    """
    shares = [faults // len(ways) + (number < faults % len(ways)) for number in range(len(ways))]
    # A fault comes at most LONGEST_STEP iterations after the last one. Twice that leaves room to recover.
    write_config(folder, 2 * LONGEST_STEP * (max(shares) + 2))
    with small_disk(folder / "disk") as reason:
        needing = [kind for kind in (fill_disk.__name__, *NEED_MOUNTS) if reason and kind in kinds]
        skipped = dict.fromkeys(needing, f"nothing could be mounted ({reason})")
        kinds = [kind for kind in kinds if kind not in skipped]
        drawn, results, references = draw_kinds(kinds, faults, chance), [], {}
        for (nproc, asynchronous), share in zip(ways, shares, strict=True):
            # For each layout: others sum in another order, and differ in the last bits.
            if nproc not in references:
                references[nproc] = undisturbed(folder, nproc)
            mine, drawn = drawn[:share], drawn[share:]
            path = folder / "disk" / f"{nproc}-{'async' if asynchronous else 'sync'}"
            full = None if reason else folder / "disk" / "ballast"
            run = Run(folder, path, asynchronous, nproc, LAYOUTS[nproc], full)
            results.append(attack(run, references[nproc], mine, chance))
    rows = [Row(**row) for result in results for row in result["rows"]]
    return {"faults": len(rows), "skipped": skipped, "kinds": summary(rows, KINDS), "runs": results}


def main(
    faults: Annotated[int, typer.Option(min=1, help="How many, over all ways to save.")] = 60,
    seed: Annotated[int, typer.Option(help="Decides which faults come, when and where.")] = 1,
    kinds: Annotated[str, typer.Option(help="Comma-separated; absent: all.")] = ",".join(KINDS),
    writers: Annotated[str, typer.Option(help="How checkpoints are written: sync, async or both.")] = "both",
    ranks: Annotated[str, typer.Option(help="How many, comma-separated; a run each: 2 or 4.")] = "2",
    directory: Annotated[Path | None, typer.Option(help="Where the runs are kept; absent: nowhere.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write everything there as JSON.")] = None,
) -> None:
    """Hit runs with faults, and compare them with one left alone."""
    setup_logging()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # ends the run and unmounts the disk
    chosen = [kind.strip() for kind in kinds.split(",")]
    unknown = sorted(set(chosen) - set(KINDS))
    modes = {"sync": [False], "async": [True], "both": [False, True]}
    if unknown or writers not in modes:
        raise typer.BadParameter(f"{', '.join(unknown) or writers}: choose from {', '.join([*KINDS, *modes])}")
    sizes = [number.strip() for number in ranks.split(",")]
    if set(sizes) - {str(size) for size in LAYOUTS}:
        raise typer.BadParameter(f"--ranks {ranks}: choose from {', '.join(map(str, LAYOUTS))}")
    ways = [(int(size), mode) for size in sizes for mode in modes[writers]]
    with tempfile.TemporaryDirectory(prefix="megacode-faults-") as scratch:
        folder = directory or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        document = campaigns(folder.resolve(), faults, random.Random(seed), chosen, ways)
    document = {"seed": seed, **document}
    if json_path is not None:
        write_json(json_path, document)
    render(document, Console())
    sys.exit(1 if any(run["problems"] for run in document["runs"]) else 0)


if __name__ == "__main__":
    typer.run(main)

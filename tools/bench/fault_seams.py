"""Faults between processes: ranks that see different files or configs, checkpoints that are gone, a failing clean-up.

Each fault happens while the run stands still. Where a start must be refused, the fault checks that every rank ended
with exit code 2, and that nothing in the run directory was lost. Then it puts things right again.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from fault_kinds import PATIENCE, ROOT, Run, Strike, flip

from megacode.base.files import RunDir
from megacode.base.ports import free_port
from megacode.mcore.nodes import NODE

REFUSED = (2,)


def ranks_disagree(run: Run, chance: random.Random) -> None:
    """Start with one rank that has another setting, as from another node's environment."""
    odd = chance.randrange(run.nproc)
    setting = chance.choice(["train.clip_grad=0.5", "seed=4321", "train.weight_decay=0.2"])
    _refused(run, lambda rank: _rank(run, more=[setting] if rank == odd else []), setting.partition("=")[0])


def edited_config(run: Run, chance: random.Random) -> None:
    """Edit the config's future, and start while one node still sees the file from before the edit."""
    config, before = run.folder / "run.yaml", run.folder / f"before-{run.path.name}.yaml"
    shutil.copy(config, before)
    document = yaml.safe_load(config.read_text())
    document["phases"][-1]["learning_rate"]["final"] = 1.0e-5
    edited = run.folder / f"edited-{run.path.name}.yaml"
    edited.write_text(yaml.safe_dump(document, sort_keys=False))
    odd = chance.randrange(run.nproc)
    _refused(run, lambda rank: _rank(run, config=before if rank == odd else edited), "learning_rate.final")


def stale_view(run: Run, chance: random.Random) -> None:
    """Start while one rank sees the run directory as it was before the newest checkpoint was saved."""
    iterations = run.files.iterations()
    if len(iterations) < 2:
        return
    old = run.folder / f"old-{run.path.name}"
    shutil.rmtree(old, ignore_errors=True)
    newest = RunDir.iteration_name(iterations[-1])
    shutil.copytree(run.path, old, ignore=shutil.ignore_patterns(newest))
    RunDir(old).latest.write_text(RunDir.iteration_name(iterations[-2]) + "\n")
    odd = chance.randrange(1, run.nproc)  # rank 0's view is the one that counts
    seen = f'mount --bind "{old}" "{run.path}" && exec "$@"'
    # A mount that only this rank sees: another directory under the same path.
    through = ["unshare", "--mount", "sh", "-c", seen, "sh"]
    try:
        _refused(run, lambda rank: _rank(run, through=through if rank == odd else []), "checkpoint")
    finally:
        shutil.rmtree(old)


def no_checkpoints(run: Run, chance: random.Random) -> None:
    """Start while the directory of checkpoints is not mounted."""
    aside = run.path / "not-mounted"
    run.files.checkpoints.rename(aside)
    latest = run.files.latest.read_text()
    if chance.random() < 0.5:
        run.files.latest.unlink()
    try:
        with _unchanged(run):
            run.start()
            run.ended(REFUSED)
    finally:
        # An empty directory made by the start would hide the mount when it comes back.
        if run.files.checkpoints.exists():
            raise run.broken("it has made a new directory of checkpoints")
        aside.rename(run.files.checkpoints)
        run.files.latest.write_text(latest)


def step_back(run: Run, chance: random.Random) -> None:
    """Damage the newest checkpoint, and stop the run soon after it resumed from the one before, with few kept."""
    iterations = run.files.iterations()
    if len(iterations) < 2:
        return
    flip(run, chance)
    keep, told = chance.choice([1, 2, 3]), _count(run, '"set_aside"')
    run.start(f"checkpoint.keep_last={keep}")
    _wait(run, lambda: _count(run, '"set_aside"') > told)
    assert run.process is not None
    run.process.send_signal(signal.SIGTERM)  # it saves, most often at an iteration before the damaged one
    run.ended((75,))
    named = run.files.checkpoints / run.files.latest.read_text().strip()
    if not named.exists():
        raise run.broken(f"`latest` names {named.name}, which is gone (keep_last {keep})")


# A controller that says who was cancelled until the file `forgotten` lies beside it.
_CONTROLLER = """#!/bin/sh
if [ "$2" = hostnames ]; then echo localhost; exit 0; fi
if [ -e "$0.forgotten" ]; then echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; fi
echo "JobId=900 JobState=CANCELLED Restarts=0"
"""


def forgotten_job(run: Run, chance: random.Random) -> None:
    """Cancel a job of a chain, and begin the next one when SLURM's controller has forgotten the first."""
    folder = run.folder / f"controller-{run.path.name}"
    folder.mkdir(exist_ok=True)
    controller = folder / "scontrol"
    controller.write_text(_CONTROLLER)
    controller.chmod(0o755)
    forgotten = folder / "scontrol.forgotten"
    forgotten.unlink(missing_ok=True)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    job = {"PATH": path, "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": str(run.nproc)}
    with _unchanged(run):
        _job(run, {**job, "SLURM_JOB_ID": "900"}, ["terminated", str(run.path)], 0)
        forgotten.touch()
        chain = {"MEGACODE_CHAIN": "900", "MEGACODE_CHAIN_BEFORE": "900"}
        _job(run, {**job, **chain, "SLURM_JOB_ID": "901"}, ["begin", "run.yaml", *run.overrides], 3)


def _job(run: Run, environment: dict[str, str], arguments: list[str], expected: int) -> None:
    """Call `megacode job` as a job's script does."""
    command = [sys.executable, "-m", "megacode.cli", "job", *arguments]
    everything = {"PYTHONPATH": str(ROOT), **os.environ, **environment}
    with run.log.open("ab") as log:
        done = subprocess.run(command, cwd=run.folder, env=everything, stdout=log, stderr=log, check=False)
    if done.returncode != expected:
        raise run.broken(f"job {arguments[0]} ended with {done.returncode}, not with {expected}")


def prune_fails(run: Run, chance: random.Random) -> None:
    """Keep a file of the oldest checkpoint from being removed while the run prunes, as an open file on NFS does."""
    mount = run.files.checkpoint(run.files.iterations()[0]) / "held"
    # Nobody can remove a mount point, not even root, as nobody can remove what NFS holds open.
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], check=True)
    told, failed = _count(run, '"prune_failed"'), _count(run, '"save_failed"')  # a full disk had failed before
    try:
        run.start("checkpoint.keep_last=1")
        _wait(run, lambda: _count(run, '"prune_failed"') > told)
        run.kill()
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        shutil.rmtree(mount.parent)  # half removed, as the run had begun to
    if _count(run, '"save_failed"') > failed:
        raise run.broken("a clean-up that failed was taken for a failed save")


def _count(run: Run, event: str) -> int:
    return run.files.events.read_text().count(event)


def _wait(run: Run, condition: Callable[[], bool]) -> None:
    assert run.process is not None
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if run.process.poll() is not None:
            raise run.broken(f"it ended with {run.process.returncode}")
        if time.monotonic() > deadline:
            raise run.broken(f"it did not come far enough in {PATIENCE:.0f} s")
        time.sleep(0.01)


def _rank(run: Run, config: Path | None = None, more: Sequence[str] = (), through: Sequence[str] = ()) -> list[str]:
    """Return the command of one rank."""
    file = config or run.folder / "run.yaml"
    return [*through, sys.executable, "-m", "megacode.cli", "train", str(file), *run.overrides, *more]


def _refused(run: Run, command: Callable[[int], list[str]], setting: str) -> None:
    """Start ranks that do not agree; every one must end with 2, and the message must name the setting."""
    port = free_port()
    before = run.log.stat().st_size
    with _unchanged(run), run.log.open("ab") as log:
        ranks = [
            subprocess.Popen(
                command(rank), cwd=run.folder, env=_environment(rank, run.nproc, port), stderr=log, stdout=log
            )
            for rank in range(run.nproc)
        ]
        try:
            # Each must end by itself. One that waits for a rank that is gone is a failure.
            codes = [rank.wait(PATIENCE) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    output = run.log.read_bytes()[before:].decode(errors="replace")
    if codes != [2] * run.nproc or setting not in output:
        raise run.broken(f"ranks that disagree on {setting} ended with {codes}")


def _environment(rank: int, nproc: int, port: int) -> dict[str, str]:
    # Each rank stands for a node, and looks at its files itself.
    place = {"RANK": str(rank), NODE: f"node{rank}", "WORLD_SIZE": str(nproc)}
    return {
        "PYTHONPATH": str(ROOT), **os.environ, **place,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip


@contextmanager
def _unchanged(run: Run) -> Iterator[None]:
    """Check that a refused start has lost nothing: no checkpoint, no line of metrics, no entry of the ledger."""
    before = _contents(run)
    yield
    after = _contents(run)
    if after != before:
        raise run.broken(f"a refused start has changed {[name for name in before if before[name] != after[name]]}")


def _contents(run: Run) -> dict[str, object]:
    files = run.files
    texts = {path.name: path.read_bytes() if path.exists() else None for path in (files.metrics, files.ledger)}
    return {**texts, "checkpoints": files.iterations(), "latest": files.latest.exists() and files.latest.read_text()}


_STRIKES = (ranks_disagree, edited_config, no_checkpoints, step_back, stale_view, prune_fails, forgotten_job)
SEAMS: dict[str, Strike] = {strike.__name__: strike for strike in _STRIKES}
NEED_MOUNTS = (stale_view.__name__, prune_fails.__name__)

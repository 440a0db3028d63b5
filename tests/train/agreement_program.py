"""What runs on the ranks of the agreement tests: starts whose ranks see different files, and what each of them says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megacode.base.errors import MegacodeError
from megacode.checkpoint import store
from megacode.checkpoint.ledger import Ledger
from megacode.mcore import agreement, groups
from megacode.mcore.nodes import NODE
from megacode.train import main, origin

SHORT = ("phases.balanced.iterations=4", "phases.prose.iterations=1", "phases.cooldown.iterations=1")
SAVES = "checkpoint={every: 2 iterations, async: false, keep_phase_ends: false}"


def overrides(data: str, out: str, *more: str) -> list[str]:
    """Return the overrides of a short golden run in a directory."""
    sources = [f"sources.{name}.path={data}/{name}" for name in ("prose", "code")]
    return [*sources, f"run_dir={out}", SAVES, *SHORT, *more]


def starts(config: str, data: str, out: str) -> dict[str, Any]:
    """Start runs whose ranks differ in one thing each, and return how each ended here."""
    rank = int(os.environ["RANK"])
    settings = {
        "seed": ("seed=8",),
        "clip_grad": ("train.clip_grad=0.1",),
        "two settings": ("train.adam_beta2=0.9", "phases.balanced.blend={prose: 0.6, code: 0.4}"),
        "unreadable": ("no_such.key=1",),
    }
    ends: dict[str, Any] = {}
    for name, more in settings.items():
        ends[name] = _end(config, overrides(data, f"{out}/{name}", *(more if rank == 1 else ())))
    ends["same"] = _end(config, overrides(data, f"{out}/trunk"))
    with _moving_latest(Path(out) / "trunk", rank):
        branch = overrides(data, f"{out}/branch", f"init={{from: {out}/trunk, load: all}}")
        ends["live trunk"] = _end(config, branch)
    with _own_ledger(rank):
        ends["own ledger"] = _end(config, overrides(data, f"{out}/ledger"))
    # One name that leads each rank to files of its own, as a directory does that is local to a node.
    os.chdir(f"{out}/node{rank}")
    os.environ[NODE] = f"node{rank}"
    branch = overrides(data, f"{out}/moved", "init={from: /proc/self/cwd/checkpoint, load: all}")
    ends["own checkpoint"] = _end(config, branch)
    ends["own data"] = _end(config, overrides("/proc/self/cwd/data", f"{out}/moved"))
    return ends


def _end(config: str, more: list[str]) -> str:
    """Train, and return how it ended: the reason, or the error."""
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)  # where no socket of the last meeting lingers
    try:
        return main.run(Path(config), more)
    except MegacodeError as error:
        return f"{type(error).__name__} {error.of_all_ranks}: {error}"
    finally:
        groups.stop()


@contextmanager
def _replaced(owner: Any, name: str, new: Callable[..., Any]) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old)


@contextmanager
def _moving_latest(trunk: Path, rank: int) -> Iterator[None]:
    """Let this rank see what `latest` named before the trunk's last save, if it is not the first."""
    earlier = trunk / "checkpoints" / "iter_0000004"
    old = store.find_checkpoint
    with _replaced(origin, "find_checkpoint", lambda path: earlier if rank else old(path)):
        yield


@contextmanager
def _own_ledger(rank: int) -> Iterator[None]:
    """Let this rank read a ledger that withholds the first batch, if it is not the first."""
    old = Ledger.read.__func__  # type: ignore[attr-defined]

    def read(cls: type[Ledger], run: Any, writes: bool = False) -> Ledger:
        ledger = old(cls, run, writes)
        if rank:
            ledger.add(0, 8, phase="balanced", iteration=1, reason="spike")
        return ledger

    with _replaced(Ledger, "read", classmethod(read)):  # type: ignore[arg-type]
        yield


def facts(values: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare facts of which each rank has its own, and return what is said."""
    rank = int(os.environ["RANK"])
    groups.join()
    said = {}
    try:
        agreement.prove_equal(values[rank])
    except MegacodeError as error:
        said["error"] = str(error)
    said["first"] = agreement.decided(lambda: f"of rank {rank}")
    groups.stop()
    return said

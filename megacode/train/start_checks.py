"""Check that a run can start on a number of ranks: everything that can be known without a rank or a GPU.

Called on a login node, at the begin of a job, and before local ranks are started; needs no torch.
"""

from __future__ import annotations

import shutil

from megacode.base.errors import LaunchError
from megacode.base.files import RunDir
from megacode.base.lock import refuse_if_live
from megacode.base.units import format_bytes
from megacode.base.user_paths import refuse_unwritable
from megacode.capacity.interruptions import checkpoint_bytes
from megacode.checkpoint.store import latest, recover
from megacode.config.run import RunConfig
from megacode.data.windows import open_streams
from megacode.mcore.layout_check import check
from megacode.planning.run_plan import Plan, check_trainable, make_plan
from megacode.train.origin import Origin, check_restart, find_origin
from megacode.train.scoring_process import spared_at_most

_ROOM = 1.05  # for index, state and the file system's overhead


def check_ready(
    config: RunConfig, ranks: int, accept_changed_past: bool = False, from_scratch: bool = False
) -> tuple[Plan, Origin]:
    """Refuse a run that cannot start; return its plan, and what it starts from as this process sees it.

    Args:
        config: the run.
        ranks: number of ranks.
        accept_changed_past: resume although the config changes what was already read.
        from_scratch: start with random weights although the run has saved before, if no checkpoint can be used.

    Raises:
        MegacodeError: settings are wrong, the plan is infeasible, the layout does not fit the ranks, data is missing
            or differs from its manifest, the past has changed, the run directory cannot be written, the run is live,
            or the disk is too small.
    """
    # From cheap to slow. Each check repeats one that the ranks make, but before they are started.
    check_trainable(config)
    check(config, ranks)
    plan = make_plan(config)
    open_streams(config)
    run = RunDir(config.directory)
    refuse_unwritable(run.path, "run_dir", directory=True)
    refuse_unwritable(run.checkpoints, "run_dir", directory=True)
    refuse_if_live(run)
    recover(run)  # nobody trains here: a checkpoint that a kill left under a hidden name may be the only one
    own = latest(run)
    check_restart(run, from_scratch, own)
    origin = find_origin(plan, own, accept_changed_past)
    check_disk(plan, run)
    return plan, origin


def check_disk(plan: Plan, run: RunDir) -> None:
    """Refuse a run if the checkpoints that its policy keeps will not fit on the disk.

    Raises:
        LaunchError: they will not.
    """
    size = int(_ROOM * checkpoint_bytes(plan.config, plan.vocab_size))
    missing = max(1, most_at_once(plan) - len(run.iterations()))
    place = run.path.absolute()
    existing = next(item for item in (place, *place.parents) if item.exists())
    free = shutil.disk_usage(existing).free
    if free >= missing * size:
        return
    message = (
        f"the run keeps up to {most_at_once(plan)} checkpoints of {format_bytes(size)}; the {missing} still to be "
        f"saved need {format_bytes(missing * size)}, but {existing} has {format_bytes(free)} free"
    )
    raise LaunchError(message, "checkpoint", _fix(plan, free // size))


def _fix(plan: Plan, room: int) -> str:
    kept = len(_kept(plan)) + 2
    if plan.config.checkpoint.every is None or room < kept:
        return "free some space, or set run_dir to a larger disk"
    return f"set checkpoint.keep_last={room - kept + 1} or less, save less often, or set run_dir to a larger disk"


def most_at_once(plan: Plan) -> int:
    """Return the maximum number of checkpoints on the disk: those that are kept, and the one being written."""
    policy, kept = plan.config.checkpoint, _kept(plan)
    periodic = {*plan.multiples(policy.every), *plan.scored(), plan.batches.total_iterations} - kept
    # One more than `keep_last`: a new checkpoint is complete before the oldest one is deleted.
    last = len(periodic) if policy.keep_last is None else policy.keep_last
    return len(kept) + min(len(periodic), last + 1 + spared_at_most(plan.config.evaluate))


def _kept(plan: Plan) -> set[int]:
    """Return the iterations whose checkpoints are never deleted."""
    policy = plan.config.checkpoint
    kept = set(plan.multiples(policy.keep_every)) | ({0} if policy.at_start else set())
    if policy.keep_phase_ends:
        kept |= plan.phase_ends()
    return kept

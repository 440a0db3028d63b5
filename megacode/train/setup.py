"""Build a Trainer from a plan, on every rank: lock, watchdog, data, checkpoint, model, optimizer, in this order."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from megacode.base.files import RunDir, write_json, write_text
from megacode.base.lock import RunLock
from megacode.base.revision import revision
from megacode.base.user_paths import refuse_unwritable
from megacode.capacity.costs import flops_per_token
from megacode.chat.run_template import record_template
from megacode.checkpoint.ledger import Ledger
from megacode.checkpoint.state import TrainState
from megacode.config.config_file import dump_config
from megacode.data import dali, objects
from megacode.data.device_loader import DeviceLoader
from megacode.data.indexed import bin_path, idx_path
from megacode.data.loader import BatchSource, Loader
from megacode.data.prefetch import Prefetch
from megacode.data.source_stream import SourceStream
from megacode.data.tokenizer import load_tokenizer
from megacode.data.windows import open_streams
from megacode.mcore import agreement, device, groups, nodes, te
from megacode.mcore.agreement import code_digest
from megacode.mcore.build import build
from megacode.mcore.groups import Ranks
from megacode.mcore.rank_model import RankModel
from megacode.metrics.meter import Meter
from megacode.metrics.reader import lost_work
from megacode.metrics.sinks import Events, Sink, open_sinks
from megacode.planning.run_plan import Plan
from megacode.train import node_ranks, old_stacks, restoring
from megacode.train.fp8_watch import Fp8Watch
from megacode.train.mirroring import Mirrors
from megacode.train.origin import Origin, check_inherited, check_restart, find_origin
from megacode.train.run_log import RunLog
from megacode.train.saving import Saver
from megacode.train.scoring import Scoring
from megacode.train.signals import StopSignal
from megacode.train.stop_limits import TimeLimit, TouchFiles
from megacode.train.trainer import Trainer
from megacode.train.update_guard import Guard
from megacode.train.watchdog import Watchdog

log = logging.getLogger(__name__)

# Packages whose versions are recorded in checkpoints and must be the same on all nodes.
_RECORDED = ("megacode", "torch", "megatron-core", "numpy", "tokenizers", "transformers")


def build_trainer(
    plan: Plan,
    stop_signal: StopSignal,
    closing: ExitStack,
    *,
    accept_changed_past: bool = False,
    from_scratch: bool = False,
) -> Trainer:
    """Build this rank's Trainer: groups, lock, model, optimizer, data, and the state of the newest intact checkpoint.

    Args:
        plan: of the run, the same on all ranks.
        stop_signal: of this process.
        closing: gets what must end with the run, however it ends: groups, lock and watchdog.
        accept_changed_past, from_scratch: see `main.run`.

    Raises:
        MegacodeError: for every user error, on every rank alike.
        StoppedError: on every rank, if one received a signal meanwhile.
    """
    # Everything here is collective, so all ranks must go through it in this order.
    config, run = plan.config, RunDir(plan.config.directory)
    closing.callback(groups.stop)
    ranks = groups.start(config.parallel, config.seed, config.health.hang_timeout, lambda: stop_signal.name)
    first, looks = ranks.rank == 0, nodes.first_of_node()
    streams = _streams(plan, ranks, looks, stop_signal)  # before anything is written
    watching = _watched(plan, run, ranks, first, closing)
    closing.callback(groups.stop)  # again: this one runs before the watchdog ends, so that a hang in it is noticed
    events = agreement.on_all(lambda: Events(run) if first else None)
    ledger = Ledger(run, agreement.decided(lambda: Ledger.read(run).entries), writes=first)
    choice = restoring.newest_whole(run, ledger, events)
    origin = _origin(plan, choice, stop_signal, accept_changed_past, from_scratch)
    rank_model = _agreed_model(plan, ranks, streams, looks, origin, ledger)
    state = _restore(plan, rank_model, origin, stop_signal)
    # run.yaml, plan.json and `latest` are changed only now, when nothing can be refused any more.
    start = agreement.decided(lambda: _start(plan, run, origin))
    restoring.step_back(run, choice, events)
    saved = state.iteration if origin.kind == "resume" else -1
    guard, fp8 = _watches(plan, rank_model, ledger, events, state)
    limit, scoring = TimeLimit(config.limits.wall_clock), _scoring(plan, run, events, ledger, closing)
    return Trainer(
        config=config,
        schedule=plan.schedule,
        batches=plan.batches,
        rates=plan.rates,
        rank_model=rank_model,
        loader=_loader(plan, streams, ranks, closing),
        run_log=_run_log(plan, run, ranks, state, events),
        state=state,
        saver=Saver(run, rank_model, config.checkpoint, events, limit.saved, saved, lambda: scoring.spared),
        guard=guard,
        fp8=fp8,
        watchdog=watching,
        limit=limit,
        requests=TouchFiles(run) if first else None,
        stop_signal=stop_signal,
        scoring=scoring,
        mirrors=_mirrors(plan, run, first, closing),
        start=start | _this_process(plan, state, ranks),
    )


def _scoring(plan: Plan, run: RunDir, events: Events | None, ledger: Ledger, closing: ExitStack) -> Scoring:
    scoring = Scoring(run, plan.config.evaluate, plan.scored(), events, ledger.samples)
    closing.callback(scoring.close)
    return scoring


def _mirrors(plan: Plan, run: RunDir, first: bool, closing: ExitStack) -> Mirrors:
    mirrors = Mirrors(run, plan.config.metrics, first)
    closing.callback(mirrors.close)
    return mirrors


def _origin(
    plan: Plan,
    choice: restoring.FoundCheckpoint,
    stop_signal: StopSignal,
    accept_changed_past: bool,
    from_scratch: bool,
) -> Origin:
    """Return what this start begins with, according to rank 0's view of the files."""

    def decide() -> Origin:
        run = RunDir(plan.config.directory)
        refuse_unwritable(run.checkpoints, "run_dir", directory=True)  # otherwise the first save would fail
        check_restart(run, from_scratch, choice.path, choice.problems)
        return find_origin(plan, choice.path, accept_changed_past)

    origin = agreement.decided(decide)
    # The run's own checkpoint was hashed when it was chosen; another run's is hashed here.
    if origin.checkpoint is not None and origin.saved is not None and origin.kind != "resume":
        restoring.check_whole(origin.checkpoint, origin.saved)
    agreement.stop_together(stop_signal.name)  # every byte of the checkpoint was read meanwhile
    return origin


def _agreed_model(
    plan: Plan, ranks: Ranks, streams: Mapping[str, SourceStream], looks: bool, origin: Origin, ledger: Ledger
) -> RankModel:
    """Build this rank's part of the model, after proving that all ranks would train the same.

    A branch first inherits its trunk's ledger.

    Raises:
        LaunchError: on every rank, if one differs.
    """
    if origin.kind == "branch" and origin.saved is not None:
        _inherit(RunDir(plan.config.directory), ledger, origin.saved)
    agreement.prove_equal(_facts(plan, streams, looks, origin, ledger))
    log.info("all ranks agree; building the model")
    return build(plan.config, ranks, plan.vocab_size)


def _inherit(run: RunDir, ledger: Ledger, trunk: TrainState) -> None:
    """Let a branch withhold what its trunk withheld, unless something else is withheld before the trunk's clock."""
    # First on a copy in memory: the file must not change if the check refuses.
    merged = Ledger(run, ledger.entries)
    merged.inherit(trunk.ledger)
    agreement.on_all(lambda: check_inherited(merged, trunk, run))
    agreement.on_all(lambda: ledger.inherit(trunk.ledger))


def _run_log(plan: Plan, run: RunDir, ranks: Ranks, state: TrainState, events: Events | None) -> RunLog:
    total = plan.batches.total_iterations

    def sinks() -> list[Sink]:
        return open_sinks(run, state.iteration, state.consumed_samples, total) if ranks.rank == 0 else []

    # On all: if rank 0 alone failed to open a file, the others would wait for it until they are taken for hung.
    return RunLog(run, state, _meter(plan, ranks.world_size, state), events, total, agreement.on_all(sinks))


def _facts(
    plan: Plan, streams: Mapping[str, SourceStream], looks: bool, origin: Origin, ledger: Ledger
) -> dict[str, Any]:
    """Return everything that determines training, as this rank sees it.

    Args:
        plan, origin, ledger: of this start.
        streams: of the sources.
        looks: whether this rank looks at files for its node.
    """
    facts: dict[str, Any] = {
        "config": yaml.safe_load(dump_config(plan.config)),
        "plan": plan.schedule.fingerprints(),
        "ledger": [entry.document() for entry in ledger.entries],
        "origin": {"kind": origin.kind, "checkpoint": str(origin.checkpoint), "sample": origin.state.consumed_samples},
        # Every rank has looked at the objects by itself: one may have been replaced between two ranks' first looks.
        "objects": objects.etags(path(stream.prefix) for stream in streams.values() for path in (bin_path, idx_path)),
        "sources": None,
        "checkpoint": None,
        "code": None,
    }
    if looks:  # once per node: thousands of ranks would overload the file system
        facts["sources"] = {name: asdict(stream.size()) for name, stream in streams.items()}
        facts["checkpoint"] = restoring.seal_seen(origin.checkpoint) if origin.checkpoint is not None else "none"
        facts["code"] = {name: metadata.version(name) for name in _RECORDED} | {"megacode's files": code_digest()}
    return facts


def _streams(plan: Plan, ranks: Ranks, check: bool, stop_signal: StopSignal) -> dict[str, SourceStream]:
    """Open the sources on all ranks; the first rank of each node checks them."""

    def opened() -> dict[str, SourceStream]:
        if plan.config.train.loader == "dali":
            dali.check()  # before anything is read: a missing package is refused at once
        return open_streams(plan.config, check=check)

    log.info("%d ranks have met; checking data and checkpoints", ranks.world_size)
    streams = agreement.on_all(opened)
    agreement.stop_together(stop_signal.name)
    return streams


def _loader(plan: Plan, streams: Mapping[str, SourceStream], ranks: Ranks, closing: ExitStack) -> BatchSource:
    """Open the loader that the config names, closed with the run; on a GPU it builds its micro-batches there."""
    # All loaders give the same micro-batches, bit for bit; they differ in speed.
    train = plan.config.train
    arguments = (plan.config, plan.schedule, plan.batches, streams, ranks.dp_rank, ranks.dp_size)
    loader: Loader
    if train.loader == "dali":
        loader = dali.DaliLoader(*arguments, ahead=min(1, train.prefetch))
    else:
        loader = DeviceLoader(*arguments) if device.on_gpu() else Loader(*arguments)
    source = Prefetch(loader, train.prefetch) if train.prefetch else loader
    closing.callback(source.close)
    return source


def _locked(run: RunDir) -> RunLock:
    """Take the run directory's lock on rank 0, or raise on every rank."""
    lock = RunLock(run)
    agreement.decided(lock.acquire)
    return lock


def _watched(plan: Plan, run: RunDir, ranks: Ranks, first: bool, closing: ExitStack) -> Watchdog:
    """Take the run's lock and start this rank's watchdog; both end with the run."""
    lock = _locked(run)  # first: whoever does not hold it must not touch the files below
    closing.callback(lock.release)

    def clear() -> None:
        if first:
            old_stacks.clear(run)
            TouchFiles(run).clear()

    agreement.on_all(clear)
    # Old requests are gone on all ranks now, so no watchdog mistakes one for a new one.
    node = node_ranks.meet(ranks.rank, ranks.world_size, groups.broadcast_object, groups.gather_objects)
    timeout, memory = plan.config.health.hang_timeout, device.memory_high_water
    watching = Watchdog(
        run, ranks.rank, ranks.world_size, timeout,
        node=node, lock=lock if first else None, memory=memory,
    )  # fmt: skip
    watching.beat("starting", 0)
    closing.callback(watching.stop)
    return watching.start()


def _restore(plan: Plan, rank_model: RankModel, origin: Origin, stop_signal: StopSignal) -> TrainState:
    """Load the checkpoint that a start begins with, if any, and return the state at its clock."""
    config, state = plan.config, origin.state
    for line in origin.log_lines():
        log.info("%s", line)
    if origin.checkpoint is not None and origin.saved is not None:
        restoring.load(config, rank_model, origin.checkpoint, origin.saved, weights_only=origin.weights_only)
    if origin.kind == "weights" and origin.checkpoint is not None and origin.saved is not None:
        state.record_start(origin.checkpoint, origin.saved)
    state.continue_with(dump_config(config))
    sizes = config.parallel.model_dump(include={"tensor", "pipeline", "context"})
    state.layout = {"world_size": rank_model.ranks.world_size, **sizes}
    # One rank reads the tokenizer's files: thousands at once would overload the file system.
    state.tokenizer_hash = agreement.decided(lambda: load_tokenizer(config.tokenizer).hash if config.tokenizer else "")
    state.versions = {name: metadata.version(name) for name in _RECORDED}
    agreement.stop_together(stop_signal.name)
    return state


def _watches(
    plan: Plan, rank_model: RankModel, ledger: Ledger, events: Events | None, state: TrainState
) -> tuple[Guard, Fp8Watch]:
    """Return the update guard and the FP8 watch, with their state from the checkpoint."""
    guard, fp8 = Guard(plan.config.health.spikes, ledger, plan.batches, events), Fp8Watch(plan.config, rank_model)
    guard.detector.restore(state.health)
    fp8.restore(state.health.get("fp8", {}))
    return guard, fp8


def _start(plan: Plan, run: RunDir, origin: Origin) -> dict[str, Any]:
    """Write config and plan; return the facts of the start event: its kind, its origin, the work it repeats."""
    _record_run(plan, run)
    # events.jsonl is only ever appended to, so it tells a resume from a start even if every checkpoint is gone.
    facts: dict[str, Any] = {"event": "resume" if run.events.stat().st_size else "start", "kind": origin.kind}
    if origin.checkpoint is not None:
        facts["checkpoint"] = origin.checkpoint.name if origin.kind == "resume" else str(origin.checkpoint)
    if facts["event"] == "resume":
        lost = lost_work(run.metrics, origin.state.iteration)
        facts |= {"lost_iterations": lost[0], "lost_seconds": lost[1]}
    if origin.difference is not None and origin.difference.lost:
        facts["changed_past"] = origin.difference.lost
    return facts


def _this_process(plan: Plan, state: TrainState, ranks: Ranks) -> dict[str, Any]:
    """Return the facts of the start event on ranks, machine and code."""
    return {
        "ranks": ranks.world_size,
        "device": device.name(),
        "layers": "transformer_engine" if te.used(plan.config) else "local",
        "host": platform.node(),
        "pid": os.getpid(),
        "versions": state.versions,
        "git": revision(Path(__file__)) if ranks.rank == 0 else None,
    }


def _record_run(plan: Plan, run: RunDir) -> None:
    run.create()
    write_text(run.config, dump_config(plan.config))
    write_json(run.plan, plan.document())
    record_template(plan.config, run)


def _meter(plan: Plan, world_size: int, state: TrainState) -> Meter:
    peak = device.peak_flops(plan.config.precision.dtype)  # also in FP8 phases, so that their MFU can be compared
    flops = flops_per_token(plan.config.model, plan.vocab_size, plan.schedule.seq_length)
    return Meter(plan.schedule, flops, peak * world_size if peak else None, dict(state.samples_by_source))

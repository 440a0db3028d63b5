"""From a plan to a Trainer, in order, on every rank."""

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
from megacode.checkpoint.ledger import Ledger
from megacode.checkpoint.state import TrainState
from megacode.config.loading import dump_config
from megacode.data import dali
from megacode.data.device_loader import DeviceLoader
from megacode.data.loader import BatchSource, Loader
from megacode.data.prefetch import Prefetch
from megacode.data.tokenizer import load_tokenizer
from megacode.data.windows import SourceStream, open_streams
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

_RECORDED = ("megacode", "torch", "megatron-core", "numpy", "tokenizers", "transformers")


def build_trainer(
    plan: Plan,
    stop_signal: StopSignal,
    closing: ExitStack,
    *,
    accept_changed_past: bool = False,
    from_scratch: bool = False,
) -> Trainer:
    """Build this rank's Trainer: groups, lock, model, optimizer, data, and the state of the newest whole checkpoint.

    Args:
        plan: of the run, the same on all ranks.
        stop_signal: hears signals to this process.
        closing: what must end with the run, however it ends: groups, lock and watchdog are added to it.
        accept_changed_past, from_scratch: see `main.run`.

    Raises:
        MegacodeError: for every mistake of the user's, on every rank alike.
        StoppedError: on every rank, where one was asked to stop meanwhile.
    """
    config, run = plan.config, RunDir(plan.config.directory)
    closing.callback(groups.stop)
    ranks = groups.start(config.parallel, config.seed, config.health.hang_timeout, lambda: stop_signal.name)
    first, looks = ranks.rank == 0, nodes.first_of_node()
    streams = _streams(plan, ranks, looks, stop_signal)  # before anything is written
    requests = TouchFiles(run) if first else None
    watching = _watched(plan, run, ranks, requests, closing)
    closing.callback(groups.stop)  # a hang in it is still watched
    events = agreement.on_all(lambda: Events(run) if first else None)
    ledger = Ledger(run, agreement.decided(lambda: Ledger.read(run).entries), writes=first)
    choice = restoring.newest_whole(run, ledger, events)
    origin = _origin(plan, choice, stop_signal, accept_changed_past, from_scratch)
    rank_model = _agreed_model(plan, ranks, streams if looks else None, origin, ledger)
    state = _restore(plan, rank_model, origin, stop_signal)
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
        requests=requests,
        stop_signal=stop_signal,
        scoring=scoring,
        start=start | _this_process(plan, state, ranks),
    )


def _scoring(plan: Plan, run: RunDir, events: Events | None, ledger: Ledger, closing: ExitStack) -> Scoring:
    scoring = Scoring(run, plan.config.evaluate, plan.scored(), events, ledger.samples)
    closing.callback(scoring.close)
    return scoring


def _origin(
    plan: Plan,
    choice: restoring.FoundCheckpoint,
    stop_signal: StopSignal,
    accept_changed_past: bool,
    from_scratch: bool,
) -> Origin:
    """Return what this start goes on from, by rank 0's view of the files."""

    def decide() -> Origin:
        run = RunDir(plan.config.directory)
        refuse_unwritable(run.checkpoints, "run_dir", directory=True)  # or no save would ever succeed
        check_restart(run, from_scratch, choice.path, choice.problems)
        return find_origin(plan, choice.path, accept_changed_past)

    origin = agreement.decided(decide)
    if origin.checkpoint is not None and origin.saved is not None and origin.kind != "resume":
        restoring.check_whole(origin.checkpoint, origin.saved)
    agreement.stop_together(stop_signal.name)  # every byte of the checkpoint was read meanwhile
    return origin


def _agreed_model(
    plan: Plan, ranks: Ranks, streams: Mapping[str, SourceStream] | None, origin: Origin, ledger: Ledger
) -> RankModel:
    """Build this rank's part of the model, once it is proven that all ranks would train the same.

    A branch takes over what its trunk has withheld first.

    Raises:
        LaunchError: on every rank, where one differs.
    """
    if origin.kind == "branch" and origin.saved is not None:
        _inherit(RunDir(plan.config.directory), ledger, origin.saved)
    agreement.prove_equal(_facts(plan, streams, origin, ledger))
    log.info("all ranks agree; building the model")
    return build(plan.config, ranks, plan.vocab_size)


def _inherit(run: RunDir, ledger: Ledger, trunk: TrainState) -> None:
    """Let a branch withhold what its trunk withheld, where nothing else was withheld before the trunk's clock."""
    both = Ledger(run, ledger.entries)
    both.inherit(trunk.ledger)
    agreement.on_all(lambda: check_inherited(both, trunk, run))
    agreement.on_all(lambda: ledger.inherit(trunk.ledger))


def _run_log(plan: Plan, run: RunDir, ranks: Ranks, state: TrainState, events: Events | None) -> RunLog:
    total = plan.batches.total_iterations

    def sinks() -> list[Sink]:
        return open_sinks(run, state.iteration, state.consumed_samples, total) if ranks.rank == 0 else []

    return RunLog(run, state, _meter(plan, ranks.world_size, state), events, total, agreement.on_all(sinks))


def _facts(plan: Plan, streams: Mapping[str, SourceStream] | None, origin: Origin, ledger: Ledger) -> dict[str, Any]:
    """Return what decides what is learned, as this rank sees it.

    Args:
        plan, origin, ledger: of this start.
        streams: of the sources; None where another rank of this node looks at files.
    """
    facts: dict[str, Any] = {
        "config": yaml.safe_load(dump_config(plan.config)),
        "plan": plan.schedule.fingerprints(),
        "ledger": [entry.document() for entry in ledger.entries],
        "origin": {"kind": origin.kind, "checkpoint": str(origin.checkpoint), "sample": origin.state.consumed_samples},
        "sources": None,
        "checkpoint": None,
        "code": None,
    }
    if streams is not None:
        facts["sources"] = {name: asdict(stream.size()) for name, stream in streams.items()}
        facts["checkpoint"] = restoring.seal_seen(origin.checkpoint) if origin.checkpoint is not None else "none"
        facts["code"] = {name: metadata.version(name) for name in _RECORDED} | {"megacode's files": code_digest()}
    return facts


def _streams(plan: Plan, ranks: Ranks, check: bool, stop_signal: StopSignal) -> dict[str, SourceStream]:
    """Open the sources, where what the config reads them with is there; the first rank of a node checks them."""

    def opened() -> dict[str, SourceStream]:
        if plan.config.train.loader == "dali":
            dali.check()
        return open_streams(plan.config, check=check)

    log.info("%d ranks have met; checking data and checkpoints", ranks.world_size)
    streams = agreement.on_all(opened)
    agreement.stop_together(stop_signal.name)
    return streams


def _loader(plan: Plan, streams: Mapping[str, SourceStream], ranks: Ranks, closing: ExitStack) -> BatchSource:
    """Open the loader that the config asks for, closed with the run; on a GPU it makes its micro-batches there."""
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


def _watched(plan: Plan, run: RunDir, ranks: Ranks, requests: TouchFiles | None, closing: ExitStack) -> Watchdog:
    """Take the run's lock and start the watchdog of this rank; both end with the run."""
    lock = _locked(run)
    closing.callback(lock.release)

    def clear() -> None:
        if requests is not None:
            old_stacks.clear(run)
            requests.clear()

    agreement.on_all(clear)
    # After this no rank takes an old request for one of now.
    here = node_ranks.meet(ranks.rank, ranks.world_size, groups.broadcast_object, groups.gather_objects)
    timeout, memory = plan.config.health.hang_timeout, device.memory_high_water
    watching = Watchdog(
        run, ranks.rank, ranks.world_size, timeout,
        node=here, lock=lock if requests is not None else None, memory=memory,
    )  # fmt: skip
    watching.beat("starting", 0)
    closing.callback(watching.stop)
    return watching.start()


def _restore(plan: Plan, rank_model: RankModel, origin: Origin, stop_signal: StopSignal) -> TrainState:
    """Load what a start goes on from, and return its state."""
    config, state = plan.config, origin.state
    for line in origin.log_lines():
        log.info("%s", line)
    if origin.checkpoint is not None and origin.saved is not None:
        restoring.load(config, rank_model, origin.checkpoint, origin.saved, weights_only=origin.weights_only)
    state.config = dump_config(config)
    sizes = config.parallel.model_dump(include={"tensor", "pipeline", "context"})
    state.layout = {"world_size": rank_model.ranks.world_size, **sizes}
    state.tokenizer_hash = agreement.decided(lambda: load_tokenizer(config.tokenizer).hash if config.tokenizer else "")
    state.versions = {name: metadata.version(name) for name in _RECORDED}
    agreement.stop_together(stop_signal.name)
    return state


def _watches(
    plan: Plan, rank_model: RankModel, ledger: Ledger, events: Events | None, state: TrainState
) -> tuple[Guard, Fp8Watch]:
    """Return what watches over updates and over FP8, with the memory that they had."""
    guard, fp8 = Guard(plan.config.health.spikes, ledger, plan.batches, events), Fp8Watch(plan.config, rank_model)
    guard.detector.restore(state.health)
    fp8.restore(state.health.get("fp8", {}))
    return guard, fp8


def _start(plan: Plan, run: RunDir, origin: Origin) -> dict[str, Any]:
    """Write config and plan; return what the diary says of this start: its event, its origin, the work it repeats."""
    _record_run(plan, run)
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
    """Return what the event of a start says of ranks, machine and code."""
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


def _meter(plan: Plan, world_size: int, state: TrainState) -> Meter:
    peak = device.peak_flops(plan.config.precision.dtype)  # in FP8 phases too, so that phases compare
    flops = flops_per_token(plan.config.model, plan.vocab_size, plan.schedule.seq_length)
    return Meter(plan.schedule, flops, peak * world_size if peak else None, dict(state.samples_by_source))

"""From a plan to a Trainer, in order, on every rank."""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path

import yaml

from megacode.base.errors import CheckpointError, Problem
from megacode.base.files import RunDir, write_json, write_text
from megacode.checkpoint import store
from megacode.checkpoint.state import TrainState
from megacode.config.loading import dump_config
from megacode.config.run import RunConfig
from megacode.data.loader import Loader
from megacode.data.tokenizer import load_tokenizer
from megacode.data.windows import open_streams
from megacode.mcore import device, dist_ckpt, groups
from megacode.mcore import parts as mcore_parts
from megacode.mcore.parts import Parts
from megacode.metrics.meter import Meter
from megacode.metrics.sinks import Events, open_sinks
from megacode.plan.costs import flops_per_token
from megacode.plan.phases import prove_past
from megacode.train.planning import Plan
from megacode.train.trainer import Trainer

log = logging.getLogger(__name__)

_RECORDED = ("megacode", "torch", "megatron-core", "numpy", "tokenizers", "transformers")


def build_trainer(plan: Plan) -> Trainer:
    """Build this rank's Trainer: groups, model, optimizer, data, and the state of the newest checkpoint, if any.

    Args:
        plan: of the run.

    Raises:
        MegacodeError: for every mistake of the user's.
    """
    config, run = plan.config, RunDir(plan.config.directory)
    streams = open_streams(config)
    ranks = groups.start(config.parallel, config.seed)
    parts = mcore_parts.build(config, ranks, plan.vocab_size)
    state = _restore(plan, parts, run)
    first = ranks.rank == 0
    if first:
        _record_run(plan, run)
    return Trainer(
        config=config,
        schedule=plan.schedule,
        batches=plan.batches,
        rates=plan.rates,
        parts=parts,
        loader=Loader(config, plan.schedule, plan.batches, streams, ranks.dp_rank, ranks.dp_size),
        meter=_meter(plan, ranks.world_size, state),
        sinks=open_sinks(run, state.iteration, plan.batches.total_iterations) if first else [],
        events=Events(run) if first else None,
        state=state,
        saved_iteration=state.iteration if state.iteration else -1,
    )


def _restore(plan: Plan, parts: Parts, run: RunDir) -> TrainState:
    """Load the run's newest checkpoint, else what `init` names, and return the clock to go on from."""
    newest = store.latest(run)
    if newest is not None:
        state = TrainState.read(newest)
        _prove_same_model(plan.config, state, newest)
        prove_past(plan.schedule, state.fingerprints, state.consumed_samples)
        dist_ckpt.load(parts, newest)
        log.info("going on from %s, sample %d", newest, state.consumed_samples)
    else:
        state = TrainState()
        if plan.config.init.from_ != "random":
            origin = store.find_checkpoint(Path(plan.config.init.from_))
            _prove_same_model(plan.config, TrainState.read(origin), origin)
            dist_ckpt.load(parts, origin, weights_only=plan.config.init.load == "weights")
            log.info("starting from the %s of %s", plan.config.init.load, origin)
    state.config = dump_config(plan.config)
    state.layout = {
        "world_size": parts.ranks.world_size,
        **plan.config.parallel.model_dump(include={"tensor", "pipeline"}),
    }
    state.tokenizer_hash = load_tokenizer(plan.config.tokenizer).hash if plan.config.tokenizer else ""
    state.versions = {name: metadata.version(name) for name in _RECORDED}
    return state


def _prove_same_model(config: RunConfig, state: TrainState, checkpoint: Path) -> None:
    """Refuse a checkpoint of another model shape, naming every difference."""
    saved = yaml.safe_load(state.config)["model"]
    ours = config.model.model_dump(mode="json", exclude_none=True)
    problems = [
        Problem(
            f"the checkpoint has {saved.get(key)!r}, the config {ours.get(key)!r}",
            f"{checkpoint}: model.{key}",
            "use the model it was saved with, or another run_dir",
        )
        for key in sorted(set(saved) | set(ours))
        if saved.get(key) != ours.get(key) and key not in ("preset", "hidden_dropout", "attention_dropout")
    ]
    if problems:
        raise CheckpointError(problems=problems)


def _record_run(plan: Plan, run: RunDir) -> None:
    run.create()
    write_text(run.config, dump_config(plan.config))
    write_json(run.plan, plan.document())


def _meter(plan: Plan, world_size: int, state: TrainState) -> Meter:
    precision = plan.config.precision
    peak = device.peak_flops("fp8" if precision.fp8 != "none" else precision.dtype)
    flops = flops_per_token(plan.config.model, plan.vocab_size, plan.schedule.seq_length)
    return Meter(plan.schedule, flops, peak * world_size if peak else None, dict(state.samples_by_source))

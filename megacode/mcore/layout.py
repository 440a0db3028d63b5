"""Does this run fit these processes, and can this build carry it out? Asked once, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from megacode.base.errors import ConfigError, LaunchError, Problem
from megacode.config.run import RunConfig
from megacode.config.training import Parallel
from megacode.mcore import engine


def data_parallel_size(parallel: Parallel, world_size: int) -> int:
    """Return how many copies of the model a number of processes holds.

    Raises:
        LaunchError: the processes do not divide into whole copies.
    """
    if world_size % parallel.model_size == 0:
        return world_size // parallel.model_size
    size, low = parallel.model_size, world_size // parallel.model_size * parallel.model_size
    legal = f"{low} or {low + size}" if low else str(size)
    what = (
        f"{world_size} processes do not divide by tensor {parallel.tensor} x pipeline {parallel.pipeline}"
        f" x context {parallel.context} = {size}"
    )
    raise LaunchError(what, "parallel", f"start {legal} processes, or change parallel.tensor, pipeline or context")


def batch_multiple(config: RunConfig, world_size: int) -> int:
    """Return the number of samples that every batch must be a multiple of, on so many processes.

    Every data-parallel rank takes the same number of micro-batches, and the interleaved pipeline schedule takes them
    in groups of one for each pipeline rank.
    """
    parallel = config.parallel
    group = parallel.pipeline if parallel.virtual_pipeline else 1
    return config.train.micro_batch_size * data_parallel_size(parallel, world_size) * group


def layout_problems(config: RunConfig, world_size: int) -> list[Problem]:
    """Return everything that keeps a run from starting on so many processes; empty: it can start.

    Raises:
        LaunchError: the processes do not divide into whole copies of the model, so that nothing else can be judged.
    """
    return [*engine.problems(config), *_uneven_batches(config, batch_multiple(config, world_size))]


def check(config: RunConfig, world_size: int) -> None:
    """Refuse a run that does not fit.

    Raises:
        ConfigError: all problems of `layout_problems` at once.
        LaunchError: the processes do not divide into whole copies of the model.
    """
    problems = layout_problems(config, world_size)
    if problems:
        raise ConfigError(problems=problems)


def check_model(config: RunConfig) -> None:
    """Refuse what this build cannot compute at all, whatever the processes.

    Raises:
        ConfigError: number formats or layers are asked for that this machine does not have.
    """
    problems = list(engine.problems(config))
    if problems:
        raise ConfigError(problems=problems)


def _uneven_batches(config: RunConfig, multiple: int) -> Iterator[Problem]:
    train, ramp = config.train, config.train.batch_ramp
    sizes = [("train.global_batch_size", train.global_batch_size)]
    if ramp is not None:
        sizes += [("train.batch_ramp.start", ramp.start), ("train.batch_ramp.increment", ramp.increment)]
    for where, size in sizes:
        if size % multiple:
            low = size // multiple * multiple
            legal = f"{low} or {low + multiple}" if low else str(multiple)
            what = f"{size} does not divide by {multiple} (micro-batch x data-parallel ranks{_interleaved(config)})"
            yield Problem(what, where, f"use {legal}, or another micro_batch_size or number of processes")


def _interleaved(config: RunConfig) -> str:
    return " x pipeline ranks, as virtual_pipeline asks" if config.parallel.virtual_pipeline else ""

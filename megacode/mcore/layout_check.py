"""Check that a run fits the number of processes and can be computed on this machine, before anything is built."""

from __future__ import annotations

from megacode.base.errors import ConfigError, LaunchError, Problem
from megacode.capacity.layout import uneven_batches
from megacode.config.run import RunConfig
from megacode.config.training import Parallel
from megacode.mcore import te


def data_parallel_size(parallel: Parallel, world_size: int) -> int:
    """Return the data-parallel size: how many copies of the model a number of processes holds.

    Context-parallel ranks belong to one copy here: they share its sequences.

    Raises:
        LaunchError: the number of processes is not divisible by the size of one copy.
    """
    if world_size % parallel.model_size == 0:
        return world_size // parallel.model_size
    # The nearest numbers of processes that would work, for the message.
    size, low = parallel.model_size, world_size // parallel.model_size * parallel.model_size
    legal = f"{low} or {low + size}" if low else str(size)
    message = (
        f"{world_size} processes are not divisible by tensor {parallel.tensor} x pipeline {parallel.pipeline}"
        f" x context {parallel.context} = {size}"
    )
    raise LaunchError(message, "parallel", f"start {legal} processes, or change parallel.tensor, pipeline or context")


def layout_problems(config: RunConfig, world_size: int) -> list[Problem]:
    """Return every problem that prevents a run from starting on this number of processes; empty: it can start.

    Raises:
        LaunchError: see `data_parallel_size`; without that size nothing else can be checked.
    """
    data_parallel_size(config.parallel, world_size)
    return [*te.problems(config), *uneven_batches(config, world_size)]


def check(config: RunConfig, world_size: int) -> None:
    """Reject a run that does not fit.

    Raises:
        ConfigError: all problems of `layout_problems` at once.
        LaunchError: see `data_parallel_size`.
    """
    problems = layout_problems(config, world_size)
    if problems:
        raise ConfigError(problems=problems)


def check_model(config: RunConfig) -> None:
    """Reject what this machine cannot compute with any number of processes.

    Raises:
        ConfigError: the config asks for number formats or layers that this machine does not support.
    """
    problems = list(te.problems(config))
    if problems:
        raise ConfigError(problems=problems)

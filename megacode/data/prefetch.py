"""Micro-batches made ahead: while an iteration computes, a thread makes those of the next ones.

The thread reads windows (and waits for slow storage), copies them to the device and splits them there, on a CUDA stream
of its own. The clock still decides everything: the requested batch is returned, and batches made ahead for another
clock (after a rollback) are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from typing import Any

import torch

from megacode.data.loader import Loader
from megacode.mcore.device import SideStream
from megacode.mcore.micro_batch import MicroBatch

# Python threads take turns: this one lets the step that just received its batch begin first. The wait is short beside
# any iteration. Without it, receiving a finished batch took 0.7 ms instead of 0.1.
_LAG = 1e-3
_Made = tuple[list[MicroBatch], Any]  # and the event recorded after their copies


class Prefetch:
    """A loader's micro-batches, made ahead by one thread.

    Args:
        loader: makes them; only the thread calls it.
        iterations: how many iterations are made ahead, at least 1. Each takes memory, of the device where the loader
            makes them there: 16 bytes a token that this rank reads, 28 where documents are isolated.
    """

    def __init__(self, loader: Loader, iterations: int) -> None:
        self._loader, self._iterations = loader, iterations
        # One thread: batches are read in order, and storage sees sequential requests.
        self._thread = ThreadPoolExecutor(1, "megacode-data")
        self._side = SideStream()
        self._ahead: dict[int, Future[_Made]] = {}
        self._given: tuple[int, list[MicroBatch]] = (-1, [])

    def batch(self, consumed_samples: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of the iteration that starts at a clock, all of one size."""
        if consumed_samples == self._given[0]:
            return self._given[1]  # asked twice for one step: measured first, then run
        # Normally it is there already; a jump of the clock makes it on demand.
        asked = self._ahead.pop(consumed_samples, None) or self._order(consumed_samples, 0.0)
        clocks = self._clocks_after(consumed_samples)
        # After a rollback or a phase change the clocks differ: batches for the others are stale.
        for clock in [clock for clock in self._ahead if clock not in clocks]:
            self._ahead.pop(clock).cancel()
        for clock in clocks:
            if clock not in self._ahead:
                self._ahead[clock] = self._order(clock, _LAG)
        self._given = consumed_samples, self._taken(asked)
        return self._given[1]

    def _clocks_after(self, clock: int) -> list[int]:
        """Return the clocks of the iterations after one that are made ahead."""
        clocks: list[int] = []
        following = self._loader.after(clock)
        while following is not None and len(clocks) < self._iterations:
            clocks.append(following)
            following = self._loader.after(following)
        return clocks

    def _order(self, clock: int, lag: float) -> Future[_Made]:
        return self._thread.submit(self._made, self._loader.batch, clock, lag)

    def _made(self, make: Callable[[Any], Iterable[MicroBatch]], key: int | str, lag: float = 0.0) -> _Made:
        time.sleep(lag)
        with self._side.used():
            return list(make(key)), self._side.mark()

    def _taken(self, future: Future[_Made]) -> list[MicroBatch]:
        batches, mark = future.result()
        # The device waits for the copies, the host does not.
        self._side.hand_over(mark, (tensor for batch in batches for tensor in _tensors(batch)))
        return batches

    def validation_batches(self, source: str, samples: int | None = None) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a source's held-out windows, made by the same thread on request."""
        make = partial(self._loader.validation_batches, samples=samples)
        yield from self._taken(self._thread.submit(self._made, make, source))

    def close(self) -> None:
        """End the thread and release what it made."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()
        self._given = (-1, [])
        self._loader.close()


def _tensors(batch: MicroBatch) -> Iterator[torch.Tensor]:
    values = (getattr(batch, field.name) for field in fields(batch))
    return (value for value in values if value is not None)

"""Micro-batches by NVIDIA DALI: `train.loader: dali`.

DALI's pipeline takes an iteration's windows, copies them to pinned memory and to the GPU, and makes tokens and labels
there, in its own threads and queues. Without a GPU it does the same on the CPU. Reading happens in the thread that asks
for the batch, which in training is that of `prefetch`: a DALI worker process costs more than the reading itself.
DALI has no cumulative maximum, so torch makes positions, loss mask and document borders from its output, on the same
device. The result equals the default loader's bit for bit.

A pipeline runs ahead of the requests. Each iteration is labelled with the clock it was fed with. After a jump (a
rollback, a validation) iterations that are still in the pipeline are dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacode.base.errors import LaunchError
from megacode.data.device_loader import DeviceLoader, padded
from megacode.data.fim import WindowTokens
from megacode.data.rank_windows import Rows
from megacode.mcore import device
from megacode.mcore.micro_batch import MicroBatch

PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
OLDEST = "2.0"  # the first whose outputs stay valid while the pipeline continues
# DALI's dependencies without CUDA. On a CPU machine pip would otherwise fetch gigabytes of CUDA libraries.
_NEEDS = "astunparse gast makefun nvtx optree libcst six packaging numpy"


class _Part(NamedTuple):
    """One unit of reading: an iteration, by its clock, or a micro-batch of a source's held-out windows, by number."""

    source: str | None
    number: int


class _Fed(NamedTuple):
    """One input of the pipeline: its part, its rows, the size of its micro-batches, document starts, and windows."""

    part: _Part
    rows: Rows
    size: int
    starts: list[npt.NDArray[np.int64]] | None
    windows: list[WindowTokens]


class DaliLoader(DeviceLoader):
    """A `DeviceLoader` whose windows go through a DALI pipeline.

    Args:
        ahead: how many iterations the pipeline makes ahead.
        arguments, named: as for `Loader`.

    Raises:
        LaunchError: DALI is not installed, or too old.
    """

    def __init__(self, *arguments: Any, ahead: int = 1, **named: Any) -> None:
        check()
        super().__init__(*arguments, **named)
        self._held_out: dict[str, list[Rows]] = {}
        # The pipeline returns tensors only. What belongs to each is kept here, in the order of feeding.
        self._under_way: deque[_Fed] = deque()
        self._next = _Part(None, 0)
        self._pipeline = _pipeline(self._feed, self._rows.most, self._rows.token_type, self._rows.isolates, 1 + ahead)

    def batch(self, consumed_samples: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of the iteration that starts at a clock, all of one size."""
        return self._run(_Part(None, consumed_samples))

    def validation_batches(self, source: str) -> Iterator[MicroBatch]:
        """Yield this rank's micro-batches of a source's held-out windows, on every rank as many, all of one size."""
        self._held_out[source] = self._rows.held_out(source)
        for number in range(len(self._held_out[source])):
            yield from self._run(_Part(source, number))

    def close(self) -> None:
        """Release the pipeline, its threads and its memory."""
        self._under_way.clear()
        self._pipeline = None

    def _run(self, part: _Part) -> list[MicroBatch]:
        """Run the pipeline until it returns a part; the next part in order is returned immediately."""
        # A jump: the part is not in the pipeline yet, so feed it next and drop everything before it.
        if part not in (fed.part for fed in self._under_way):
            self._next = part
        while True:
            tokens, labels, *places = self._outputs()
            fed = self._under_way.popleft()
            if fed.part == part:
                # The pipeline has one form for all parts, and this one may have no borders.
                starts = places[0] if fed.starts is not None else None
                return self._cut(tokens, labels, fed.starts, starts, fed.rows, fed.size, fed.windows)

    def _outputs(self) -> list[Tensor]:
        """Return the pipeline's next outputs; torch's work on them is queued after the work that makes them."""
        outputs = self._pipeline.run(torch.cuda.current_stream()) if device.on_gpu() else self._pipeline.run()
        return [torch.from_dlpack(output.as_tensor()) for output in outputs]

    def _feed(self) -> list[npt.NDArray[Any]]:
        """Give the pipeline the next part: windows [k, S + 1] and, for isolated documents, `padded` starts [k, n]."""
        part = self._next
        rows, size = self._rows_of(part)
        self._next = self._after(part)
        windows = np.empty((len(rows), self._seq_length + 1), dtype=self._rows.token_type)
        read = self._gather(rows, windows)
        starts = self._rows.document_starts(rows)
        self._under_way.append(_Fed(part, rows, size, starts, read))
        places = [np.empty(0, dtype=np.int64)] * len(rows) if starts is None else starts
        return [windows, padded(places, self._seq_length)] if self._rows.isolates else [windows]

    def _rows_of(self, part: _Part) -> tuple[Rows, int]:
        if part.source is None:
            return self._rows.at(part.number)
        rows = self._held_out[part.source][part.number]
        return rows, len(rows)

    def _after(self, part: _Part) -> _Part:
        """Return the part that will probably be requested next; after the last one, the first."""
        if part.source is None:
            return _Part(None, self._rows.after(part.number) or 0)
        return _Part(part.source, (part.number + 1) % len(self._held_out[part.source]))


def check() -> None:
    """Check that DALI is installed and new enough.

    Raises:
        LaunchError: with the command that installs it.
    """
    package_version = installed()
    if package_version is None:
        raise LaunchError("dali is selected, but DALI is not installed", "train.loader", _fix("install"))
    package, version = package_version
    if too_old(version):
        what = f"dali is selected, but {package} {version} is older than {OLDEST}"
        raise LaunchError(what, "train.loader", _fix("install --upgrade"))
    try:
        import nvidia.dali  # noqa: F401
    except ImportError as error:
        what = f"dali is selected, but {package} {version} cannot be imported: {error}"
        raise LaunchError(what, "train.loader", _fix("install --upgrade")) from error


def installed() -> tuple[str, str] | None:
    """Return the package of DALI that is installed and its version, without importing it; None: there is none."""
    # Metadata, not an import: importing DALI loads CUDA and takes seconds.
    for package in PACKAGES:
        try:
            return package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def too_old(version: str) -> bool:
    """Return whether a version of DALI cannot be used."""
    return int(version.partition(".")[0]) < int(OLDEST.partition(".")[0])


def _fix(verb: str) -> str:
    cuda = torch.version.cuda
    package = PACKAGES[1] if cuda and cuda.startswith("12.") else PACKAGES[0]
    parts = package if cuda else f"--no-deps {package} {_NEEDS}"  # its CUDA libraries are of no use without a GPU
    return f"run: python -m pip {verb} {parts}\n    or remove train.loader: the default loader reads the same samples"


def _pipeline(feed: Any, most_rows: int, token_type: np.dtype, isolate: bool, depth: int) -> Any:
    """Return a pipeline from `feed` to tokens and labels, int64 [k, S], and, where documents are isolated, starts."""
    from nvidia.dali import Pipeline, fn, types

    kinds = [types.to_dali_type(token_type.name)] + [types.INT64] * isolate
    gpu = device.device().index if device.on_gpu() else None
    # One thread is enough: the work is a copy and two casts.
    pipeline = Pipeline(most_rows, num_threads=1, device_id=gpu, prefetch_queue_depth=depth)
    with pipeline:
        inputs = fn.external_source(source=feed, num_outputs=len(kinds), batch=True, dtype=kinds, ndim=[1] * len(kinds))
        # Copy first, cast afterwards: uint16 windows travel at a quarter of the size of int64 tokens.
        windows, *starts = [node.gpu() for node in inputs] if device.on_gpu() else inputs
        tokens, labels = (fn.cast(part, dtype=types.INT64) for part in (windows[:-1], windows[1:]))
        pipeline.set_outputs(tokens, labels, *starts)
    pipeline.build()
    return pipeline

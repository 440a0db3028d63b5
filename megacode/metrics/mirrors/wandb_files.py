"""Read wandb's own files far enough to know which steps they hold.

wandb writes an offline run from another process, in the background. If either process is killed, the last seconds are
missing in the file, though they were handed over. Only the file says which.

It is a log in the format of LevelDB (its doc/log_format.md): blocks of 32 KiB, in them parts of records, each with
checksum, size and kind. The first 7 bytes are wandb's. A record is a protocol buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 15
_PART = struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


def steps_in(directory: Path, run_id: str) -> int:
    """Return how many steps all offline files of a run hold: one more than the last step.

    Args:
        directory: that wandb was given.
        run_id: of the run.
    """
    # Each start has a file of its own, named by time, and goes on where the ones before end.
    for path in sorted(directory.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"), reverse=True):
        steps = [step + 1 for step in _steps(path)]
        if steps:
            return steps[-1]
    return 0


def _steps(path: Path) -> Iterator[int]:
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are made when it is imported
    with path.open("rb") as file:
        file.seek(_PART.size)  # wandb's header is as long as a part's
        for raw in _records(file):
            record = messages.Record.FromString(raw)
            if record.HasField("history"):
                yield record.history.step.num


def _records(file: BinaryIO) -> Iterator[bytes]:
    """Yield the records of a log, up to the first that is incomplete."""
    parts: list[bytes] = []
    while True:
        rest = _BLOCK - file.tell() % _BLOCK
        if rest < _PART.size:  # the end of a block is padded
            file.seek(rest, 1)
        head = file.read(_PART.size)
        if len(head) < _PART.size:
            return
        _, size, kind = _PART.unpack(head)
        body = file.read(size)
        if len(body) < size or not _WHOLE <= kind <= _LAST:
            return
        if kind in (_WHOLE, _FIRST):
            parts.clear()
        parts.append(body)
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)

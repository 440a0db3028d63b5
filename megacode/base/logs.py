"""Logging: one format; rank 0 logs everything, other ranks only warnings."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

# megatron-core warns of this six times per rank at import; `megacode doctor` reports it once, with its consequences.
_KNOWN = ("Transformer Engine and Apex are not installed", "Apex is not installed")


OPENED = "MEGACODE_OPENED"  # in a rank's environment: whoever started it has said what is about to happen
# `extra` of a record that every rank makes alike: rank 0 alone shows it.
OF_ALL_RANKS: Mapping[str, Any] = {"of_all_ranks": True}
# `extra` of a record about files that a start looks at several times: it is shown once.
ONCE: Mapping[str, Any] = {"of_all_ranks": True, "once": True}


class _Repeated:
    """Leaves out what another rank, the process that started this one, or this one itself has said."""

    def __init__(self, rank: int) -> None:
        self._rank, self._said = rank, set[str]()

    def __call__(self, record: logging.LogRecord) -> bool:
        if getattr(record, "of_all_ranks", False) and self._rank:
            return False
        if not getattr(record, "once", False):
            return True
        message = record.getMessage()
        new = message not in self._said and OPENED not in os.environ
        self._said.add(message)
        return new


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, so that lines appear above a progress bar that redirects it."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Ignore the stream that the base class sets."""


def setup_logging(level: int = logging.INFO) -> None:
    """Send log records to standard error: `level` and up from rank 0, warnings and up from the others."""
    # Before torch.distributed is set up, so from the launcher's variables: torchrun's, else srun's.
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    handler = _CurrentStderr()
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    handler.addFilter(_Repeated(rank))
    root = logging.getLogger()
    # Replaces handlers that imported libraries have installed, which would print every line twice.
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("megacode").setLevel(level if rank == 0 else logging.WARNING)

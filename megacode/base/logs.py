"""Logging: one format, rank 0 speaks, the others only warn."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TextIO

# Said by megatron-core at import, five times a rank; `megacode doctor` says it once, with what follows from it.
_KNOWN = ("Transformer Engine and Apex are not installed",)


class _CurrentStderr(logging.StreamHandler[TextIO]):
    """Writes to whatever standard error is at the moment, so that lines go above a progress bar that redirects it."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Keep no stream."""


def setup_logging(level: int = logging.INFO) -> None:
    """Send log records to standard error: `level` and up from rank 0, warnings and up from the others."""
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    handler = _CurrentStderr()
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("megacode").setLevel(level if rank == 0 else logging.WARNING)

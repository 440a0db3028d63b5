"""Logging: one format; rank 0 logs everything, other ranks only warnings."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TextIO

# megatron-core warns of this five times per rank at import; `megacode doctor` reports it once, with its consequences.
_KNOWN = ("Transformer Engine and Apex are not installed",)


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
    root = logging.getLogger()
    # Replaces handlers that imported libraries have installed, which would print every line twice.
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("megacode").setLevel(level if rank == 0 else logging.WARNING)

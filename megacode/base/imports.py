"""Heavy imports at half their CPU time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import in the body of this context, and keep what it makes out of all garbage collections.

    torch and Megatron-core make 350,000 objects that live as long as the process. Collections while they are made,
    every full one in training and two at the exit would each visit all of them: 1.6 of a start's 4.7 seconds of CPU.
    """
    if not gc.isenabled():  # a caller further out does the same
        yield
        return
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # else nothing is new, and a caller's garbage must stay collectable
            gc.freeze()
        gc.enable()

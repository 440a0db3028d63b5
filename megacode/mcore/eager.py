"""Import Megatron-core without torch's compiler, which it hands some sixty functions when it is imported.

megacode calls none of them: what is worth fusing has a kernel of its own (decision 14). The compiler alone takes a
second of CPU and 60 MB in every rank. Import this module before any other that imports Megatron-core.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

# Megatron-core imports Transformer Engine, which may compile what it likes: so it comes first, and sees torch as it is.
with suppress(ImportError):
    import transformer_engine.pytorch  # noqa: F401


def _uncompiled(function: Any = None, **options: Any) -> Any:
    """Stand in for `torch.compile`, as a decorator with or without options."""
    return function if function is not None else lambda decorated: decorated


_compile, torch.compile = torch.compile, _uncompiled
try:
    from megatron.core.jit import disable_jit_fuser
finally:
    torch.compile = _compile
disable_jit_fuser()  # for the modules of Megatron-core that are imported later

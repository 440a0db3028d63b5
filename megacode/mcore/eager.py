"""Import Megatron-core without torch's compiler, which it hands some sixty functions when it is imported.

megacode calls none of them: what is worth fusing has a kernel of its own (decision 14). The compiler alone takes a
second of CPU and 60 MB in every rank. Nor is wandb imported, which Megatron-core's inference looks for: a third of a
second. Import this module before any other that imports Megatron-core.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from types import ModuleType
from typing import Any, cast

import torch

# Megatron-core imports Transformer Engine, which may compile what it likes: so it comes first, and sees torch as it is.
with suppress(ImportError):
    import transformer_engine.pytorch  # noqa: F401


def _uncompiled(function: Any = None, **options: Any) -> Any:
    """Stand in for `torch.compile`, as a decorator with or without options."""
    return function if function is not None else lambda decorated: decorated


_compile, torch.compile = torch.compile, _uncompiled
_missing = "wandb" not in sys.modules
if _missing:
    sys.modules["wandb"] = cast(ModuleType, None)  # Python then says that there is no such module
try:
    from megatron.core.jit import disable_jit_fuser
finally:
    torch.compile = _compile
    if _missing:
        del sys.modules["wandb"]
disable_jit_fuser()  # for the modules of Megatron-core that are imported later

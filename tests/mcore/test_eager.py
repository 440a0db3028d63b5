"""Megatron-core is imported without torch's compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_ranks_import_megatron_core_without_the_compiler_and_torch_keeps_its_own(
    on_ranks: Callable[..., list[Any]],
) -> None:
    (found,) = on_ranks(1, "compiler", {})
    assert found == {"imported": [], "fuses": False, "compile": "torch"}

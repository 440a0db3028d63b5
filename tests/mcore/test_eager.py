"""Megatron-core is imported without torch's compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks import run_ranks

pytestmark = pytest.mark.slow


def test_ranks_import_megatron_core_without_the_compiler_and_torch_keeps_its_own() -> None:
    (found,) = run_ranks(1, Path(__file__).with_name("rank_program.py"), "compiler", forked=False)
    assert found == {"imported": [], "fuses": False, "compile": "torch"}

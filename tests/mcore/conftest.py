"""Fixtures of tests/mcore: ranks to run programs on, and one process that is its own only rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import ranks

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., list[Any]]:
    """`run_ranks(nproc, program, function, arguments=None)`: see tests/ranks.py."""
    return ranks.run_ranks


@pytest.fixture(scope="session")
def on_ranks(run_ranks: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """`on_ranks(nproc, function, arguments)`: a function of rank_program.py, on so many ranks."""

    def run(nproc: int, function: str, arguments: dict[str, Any]) -> list[Any]:
        return run_ranks(nproc, HERE / "rank_program.py", function, arguments)

    return run


@pytest.fixture(scope="session")
def program() -> ModuleType:
    """rank_program.py, for tests that need no second rank."""
    return ranks.load_program(HERE / "rank_program.py")


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """This process is a run's only rank, and parts from mcore when the module's tests are done."""
    import torch

    from megacode.mcore import groups

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    groups.stop()
    torch.set_num_threads(threads)

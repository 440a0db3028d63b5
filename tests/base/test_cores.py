from __future__ import annotations

import os
from pathlib import Path

import pytest

from megacode.base import cores

BOUND = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)


def test_without_a_quota_the_cores_are_those_the_process_is_bound_to(tmp_path: Path) -> None:
    assert cores.usable(tmp_path) == BOUND


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 64)],
)
@pytest.mark.usefixtures("many")
def test_a_quota_bounds_the_cores(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert cores.usable(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("400000", 4)])
@pytest.mark.usefixtures("many")
def test_an_older_systems_quota_is_read_too(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.usable(tmp_path) == expected

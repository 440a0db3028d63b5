"""The network interfaces of CPU ranks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megacode.base.errors import LaunchError
from megacode.mcore import gloo

pytestmark = pytest.mark.one_release  # nothing here calls Megatron-core


@pytest.fixture(autouse=True)
def no_devices_yet() -> Iterator[None]:
    gloo._devices.cache_clear()
    yield
    gloo._devices.cache_clear()


def test_devices_are_those_of_the_interfaces_that_the_user_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,lo")
    assert len(gloo._devices()) == 2
    assert gloo._devices() is gloo._devices(), "all groups share them"


def test_without_a_name_there_is_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert len(gloo._devices()) == 1


def test_an_unknown_interface_is_refused_with_the_name_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    with pytest.raises(LaunchError, match=r"GLOO_SOCKET_IFNAME: gloo cannot .*: Unable .*none0\n.*`ip address`"):
        gloo._devices()


@pytest.mark.slow
def test_threads_of_gloo_wait_for_a_free_core_and_the_main_thread_does_not(on_ranks: Callable[..., list[Any]]) -> None:
    ranks = on_ranks(2, "policies", {})
    assert len(ranks) == 2
    for policies in ranks:
        assert policies[0] == os.SCHED_OTHER
        assert policies.count(os.SCHED_BATCH) >= 1 + 2 * 10, "a device, and two run loops of each group"
        assert set(policies) == {os.SCHED_OTHER, os.SCHED_BATCH}


@pytest.mark.slow
def test_ranks_meet_over_the_interface_that_is_named(
    golden: Path, megacode: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("phases.cooldown.iterations=1", "--nproc", 2)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    refused = megacode("train", golden, "run_dir=run", *short)
    assert refused.returncode == 2, refused.stderr
    assert "Unable to find address for: none0" in refused.stderr
    assert "Traceback" not in refused.stderr
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    done = megacode("train", golden, "run_dir=run", *short)
    assert done.returncode == 0, done.stderr

"""Ports: one that is in use is refused with words, before ranks wait for each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megacode.base.errors import LaunchError
from megacode.base.ports import FIRST, free_port, port_of_job, refuse_if_busy
from megacode.mcore.rendezvous import refuse_busy_port


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_in_use_is_named_with_one_that_is_free(family: socket.AddressFamily) -> None:
    with socket.socket(family) as other:
        other.bind(("", free_port()))
        port = other.getsockname()[1]
        refuse_if_busy(free_port())
        other.listen()
        with pytest.raises(
            LaunchError, match=rf"MASTER_PORT: port {port} is in use on this machine\n.*MASTER_PORT=\d+"
        ):
            refuse_if_busy(port)


def test_a_port_of_a_connection_that_was_closed_is_free() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", free_port()))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            connection, _ = server.accept()
            connection.close()  # this side closes first and keeps the connection for a minute
    refuse_if_busy(port)


def test_a_local_run_never_draws_the_port_of_a_job() -> None:
    jobs = {port_of_job(job) for job in range(1, 20_000)}
    drawn = {free_port() for _ in range(200)}
    assert not jobs & drawn
    assert max(jobs | drawn) < 32768


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(LaunchError, match=f"{port} is not a port number\n.*{FIRST}"):
        refuse_if_busy(port)


@pytest.mark.slow
def test_a_start_at_a_busy_port_ends_with_exit_code_2(golden: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", free_port()))
        other.listen()
        port = other.getsockname()[1]
        place = {
            "RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-m", "megacode.cli", "train", str(golden), "run_dir=run"]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **place}, capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 2, done.stderr
    assert f"Launch error: MASTER_PORT: port {port} is in use on this machine" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "events.jsonl").exists()


def test_under_torchrun_its_own_port_is_no_busy_one() -> None:
    with socket.socket() as torchrun:
        torchrun.bind(("", free_port()))
        torchrun.listen()
        port = str(torchrun.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        refuse_busy_port({**place, "TORCHELASTIC_USE_AGENT_STORE": "True"})
        refuse_busy_port({**place, "RANK": "1"})
        refuse_busy_port({})
        with pytest.raises(LaunchError, match="is in use"):
            refuse_busy_port(place)

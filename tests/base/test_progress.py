"""Progress: a bar on a terminal, nothing on a pipe, nothing on standard output, one at a time."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from megacode.base.progress import steps

PROGRAM = """
from megacode.base.progress import bar, steps
with steps(range(3), "outer work") as counted:
    for item in counted:
        with bar("inner work", 10, size=True) as advance:
            advance(10)
from megacode.data.progress import PassProgress
with PassProgress("reading files", 9) as passed:
    with bar("hidden work", 2) as advance:
        advance(2)
    passed.advance(1, 9)
with bar("endless work"):
    print("answer")
"""


def shown_on_terminal(program: str, folder: Path, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return what a program writes to a terminal that is its standard error, and to a pipe that is its output."""
    ours, its = pty.openpty()
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=its, env=environment, cwd=folder) as process:
        os.close(its)
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.stdout is not None
        printed = process.stdout.read().decode()
        assert process.wait() == 0
    os.close(ours)
    return shown.decode(), printed


def test_a_bar_is_drawn_on_a_terminal_and_standard_output_stays_clean(tmp_path: Path) -> None:
    environment = {**os.environ, "TERM": "xterm", "RANK": "0", "COLUMNS": "80"}
    shown, printed = shown_on_terminal(PROGRAM, tmp_path, environment)
    assert "outer work" in shown
    assert "3/3" in shown
    assert "endless work" in shown
    assert "inner work" not in shown, "a bar in a bar would write over it"
    assert "reading files" in shown
    assert "hidden work" not in shown
    assert printed == "answer\n"


def test_another_rank_draws_nothing_on_a_terminal(tmp_path: Path) -> None:
    shown, printed = shown_on_terminal(PROGRAM, tmp_path, {**os.environ, "TERM": "xterm", "RANK": "1"})
    assert (shown, printed) == ("", "answer\n")


def test_nothing_is_drawn_on_a_pipe_even_where_colours_are_forced(tmp_path: Path) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "answer\n", "")


def test_steps_yields_every_item_also_of_a_stream() -> None:
    with steps((item for item in "abc"), "work", 3) as counted:
        assert list(counted) == ["a", "b", "c"]

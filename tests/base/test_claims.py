from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megacode.base import ownership
from megacode.base.claims import claimed
from megacode.base.errors import ConfigError

RACER = """
import sys, time
from pathlib import Path
from megacode.base.claims import claimed
from megacode.base.errors import ConfigError
out = Path(sys.argv[1])
try:
    with claimed(out, "--out"):
        time.sleep(0.5)
        out.open("a").write("made\\n")
except ConfigError as error:
    print(error)
"""


def test_an_output_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "out"
    with claimed(out, "--out"):
        with (
            pytest.raises(ConfigError, match=r"--out: .*out is being made by process \d+") as refused,
            claimed(out, "--out"),
        ):
            pass
        assert "remove " in str(refused.value)
    with claimed(out, "--out"):
        pass
    assert list(out.parent.iterdir()) == []


def test_the_claim_of_a_process_that_has_ended_is_taken_over(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = replace(ownership.this_process(), pid=gone.pid)
    ownership.write(tmp_path / ".out.claim", dead)
    with claimed(tmp_path / "out", "--out"):
        holder = ownership.read(tmp_path / ".out.claim")
        assert holder is not None
        assert holder.pid != gone.pid
    assert list(tmp_path.iterdir()) == []


def test_a_claim_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "out", "--out"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_of_processes_that_start_together_one_works(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACER, str(tmp_path / "out")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [racer.communicate()[0] for racer in racers]
    worked = said.count("")
    assert (tmp_path / "out").read_text() == "made\n" * worked
    assert worked + sum("is being made by" in line for line in said) == 3
    assert worked >= 1

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megacode.base import claims, ownership
from megacode.base.claims import claimed
from megacode.base.errors import ConfigError
from megacode.base.takeover import claim_path

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


def test_a_claim_on_another_machine_is_alive_for_a_day(tmp_path: Path) -> None:
    record = tmp_path / ".out.claim"
    ownership.write(record, replace(ownership.this_process(), machine="node8 boot", host="node8"))
    with pytest.raises(ConfigError, match=r"is being made by process .* on node8"), claimed(tmp_path / "out", "--out"):
        pass
    os.utime(record, (time.time() - 90_000,) * 2)
    with claimed(tmp_path / "out", "--out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_torn_claim_is_waited_for_and_then_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".out.claim").write_text("{")
    with claimed(tmp_path / "out", "--out"):
        assert ownership.read(tmp_path / ".out.claim") is not None
    assert list(tmp_path.iterdir()) == []


def test_a_takeover_by_a_live_process_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_PATIENCE_SECONDS", 0.3)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = replace(ownership.this_process(), pid=gone.pid)
    ownership.write(tmp_path / ".out.claim", dead)
    ownership.write(claim_path(tmp_path / ".out.claim", dead.token), ownership.this_process())
    with (
        pytest.raises(ConfigError, match=r"several processes have been claiming .*out for 300 ms"),
        claimed(tmp_path / "out", "--out"),
    ):
        pass


def test_of_processes_that_find_a_dead_owner_one_works_at_a_time(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ownership.write(tmp_path / ".out.claim", replace(ownership.this_process(), pid=gone.pid))
    race(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_claim_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "out", "--out"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_of_processes_that_start_together_one_works(tmp_path: Path) -> None:
    race(tmp_path)


def race(folder: Path) -> None:
    """Start three processes that make one output, and check that each has worked alone or was refused."""
    command = [sys.executable, "-c", RACER, str(folder / "out")]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [racer.communicate()[0] for racer in racers]
    worked = said.count("")
    assert (folder / "out").read_text() == "made\n" * worked
    assert worked + sum("is being made by" in line for line in said) == 3
    assert worked >= 1

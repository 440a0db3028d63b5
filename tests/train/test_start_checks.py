"""What is refused before a rank starts."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from megacode.base.errors import ConfigError, DataError, LaunchError
from megacode.base.files import RunDir
from megacode.config.config_file import load_config
from megacode.planning.run_plan import make_plan
from megacode.train.start_checks import check_ready, most_at_once

Usage = namedtuple("Usage", "total used free")


def kept_at_most(golden: Path, *overrides: str) -> int:
    return most_at_once(make_plan(load_config(golden, overrides)))


def test_checkpoints_on_the_disk_are_counted_as_the_policy_keeps_them(golden: Path) -> None:
    assert kept_at_most(golden) == 1  # only the last
    assert kept_at_most(golden, "checkpoint.every=5 iterations") == 4
    assert kept_at_most(golden, "checkpoint.every=3 iterations") == 7  # 3 .. 18, and 20
    assert kept_at_most(golden, "checkpoint.every=5 iterations", "checkpoint.keep_last=2") == 3
    assert kept_at_most(golden, "checkpoint.every=80 samples", "checkpoint.at_start=true") == 3
    every = ("checkpoint.every=2 iterations", "checkpoint.keep_every=10 iterations", "checkpoint.keep_last=1")
    assert kept_at_most(golden, *every) == 4
    assert kept_at_most(golden, "checkpoint.keep_phase_ends=true") == 3  # 10, 16, 20


def test_a_disk_too_small_for_the_checkpoints_is_refused(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(golden, ["checkpoint.every=2 iterations", f"run_dir={tmp_path}/run"])
    size = int(1.05 * 12 * 131_904)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 4 * size + 1000))
    with pytest.raises(LaunchError, match=r"up to 10 checkpoints of .* the 10 still to be saved need") as caught:
        check_ready(config, 1)
    assert "set checkpoint.keep_last=3 or less" in caught.value.problems[0].fix
    for number in range(7):
        RunDir(tmp_path / "run").checkpoint(number + 1).mkdir(parents=True)
    kept = load_config(golden, ["checkpoint.every=2 iterations", "checkpoint.keep_last=3", f"run_dir={tmp_path}/else"])
    check_ready(kept, 1)


def test_a_run_directory_where_nothing_can_be_written_is_refused(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, said in (("/proc/nowhere", "cannot write in /proc"), (tmp_path / "file", "is a file")):
        with pytest.raises(ConfigError, match=f"run_dir: .*{said}"):
            check_ready(load_config(golden, [f"run_dir={place}"]), 1)


def test_ranks_that_do_not_fit_and_data_that_is_not_there_are_refused(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use 2 processes, or more tensor"):
        check_ready(load_config(golden), 3)
    with pytest.raises(DataError, match="nowhere"):
        check_ready(load_config(golden, ["sources.code.path=nowhere"]), 1)
    bin_file = tmp_path / "data" / "code.bin"
    bin_file.write_bytes(bin_file.read_bytes()[:-64])
    with pytest.raises(DataError, match="code"):
        check_ready(load_config(golden), 1)

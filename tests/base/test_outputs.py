"""Where results go is looked at before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacode.base.errors import ConfigError
from megacode.base.outputs import check_writable, refuse_existing


def test_a_place_that_can_be_written_stays_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep" / "file.json", "--out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (Path("/proc/nowhere/file"), tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="cannot be written") as caught:
            check_writable(place, "--out")
        assert caught.value.exit_code == 2
        assert caught.value.problems[0].where == "--out"


def test_what_is_there_is_refused_with_all_names_unless_it_may_go(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    paths[0].write_text("x")
    paths[2].mkdir()
    with pytest.raises(ConfigError, match="give --overwrite") as caught:
        refuse_existing(paths, False, "--out")
    assert [problem.what for problem in caught.value.problems] == [f"{paths[i]} is there already" for i in (0, 2)]
    refuse_existing(paths, True, "--out")
    refuse_existing(paths[1:2], False, "--out")

"""Places that users name are refused with a fix, whatever the system says of them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from megacode.base.errors import ConfigError
from megacode.base.user_paths import DiskFullError, FileError, explained, refuse_existing, refuse_unwritable


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EACCES, "check the permissions of the file"),
        (errno.EROFS, "choose a path you can write to"),
        (errno.EISDIR, "give the path of a file"),
        (errno.ENOTDIR, "give the path of a directory"),
        (errno.ENOENT, "check the path"),
        (errno.ENAMETOOLONG, "use a shorter name"),
        (errno.ELOOP, "symbolic links"),
    ],
)
def test_a_refusal_of_a_path_gets_a_fix(number: int, fix: str) -> None:
    error = explained(OSError(number, "No", "some where"))
    assert type(error) is FileError
    assert error.exit_code == 2
    assert str(error).startswith("File error: some where: no\n")
    assert fix in str(error)


def test_a_full_disk_says_where_to_make_room(tmp_path: Path) -> None:
    error = explained(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "new" / "out")))
    assert isinstance(error, DiskFullError)
    assert error.exit_code == 2
    assert str(error).startswith(
        f"Disk full: {tmp_path}/new/out: no space left on device\n    free some space on the disk"
    )
    assert f"of {tmp_path} (" in str(error)
    assert "then run the same command again" in str(error)
    nameless = explained(OSError(errno.ENOSPC, "No space left on device"))
    assert str(nameless) == "Disk full: no space left on device\n    free some space, then run the same command again"


def test_what_is_no_refusal_of_a_path_stays_a_failure() -> None:
    assert explained(OSError("megacode's own")) is None
    assert explained(OSError(errno.EACCES, "no path")) is None
    assert explained(OSError(errno.ECONNREFUSED, "refused", "somewhere")) is None


def test_places_where_nothing_can_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, directory, expected in (
        (Path("/proc/nowhere/deep/page.html"), False, "cannot write in /proc"),
        (Path("/proc/nowhere"), True, "cannot write in /proc"),
        (tmp_path, False, f"{tmp_path} is a directory"),
        (tmp_path / "file", True, "file is a file"),
        (tmp_path / "file" / "page.html", False, "file is a file, not a directory"),
    ):
        with pytest.raises(ConfigError, match=f"--out: .*{expected}"):
            refuse_unwritable(path, "--out", directory)
    refuse_unwritable(tmp_path / "new" / "deep" / "page.html", "--out")
    refuse_unwritable(tmp_path / "file", "--out")
    refuse_unwritable(tmp_path, "--out", directory=True)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_what_is_there_is_refused_with_all_names_unless_it_may_go(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    paths[0].write_text("x")
    paths[2].mkdir()
    with pytest.raises(ConfigError, match="give --overwrite") as caught:
        refuse_existing(paths, False, "--out")
    assert [problem.what for problem in caught.value.problems] == [f"{paths[i]} already exists" for i in (0, 2)]
    refuse_existing(paths, True, "--out")
    refuse_existing(paths[1:2], False, "--out")

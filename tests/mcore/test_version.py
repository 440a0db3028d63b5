from __future__ import annotations

import pytest

from megacode.base.errors import LaunchError
from megacode.mcore import version


@pytest.mark.parametrize("found", ["0.16.0", "0.16.1", "0.16.9rc1"])
def test_supported_releases_pass(found: str) -> None:
    assert version.check(found) == found


@pytest.mark.parametrize("found", ["0.15.3", "0.17.0", "1.0"])
def test_other_releases_are_refused_with_the_range_and_the_command(found: str) -> None:
    with pytest.raises(LaunchError) as caught:
        version.check(found)
    assert f"megatron-core {found} is installed" in str(caught.value)
    assert "megacode supports 0.16.0 up to, not including, 0.17.0" in str(caught.value)
    assert f"pip install megatron-core=={version.PINNED}" in str(caught.value)


def test_a_missing_psutil_is_refused_before_a_save_can_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match="psutil is not installed, and saving a checkpoint would hang"):
        version.check("0.16.1")


def test_a_missing_megatron_core_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise version.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(version.metadata, "version", absent)
    with pytest.raises(LaunchError, match="megatron-core is not installed"):
        version.check()


def test_what_is_installed_here_is_supported() -> None:
    assert version.parse(version.check())[:2] == (0, 16)

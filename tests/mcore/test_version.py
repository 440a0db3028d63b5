from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from megacode.base.errors import LaunchError
from megacode.mcore import version

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("found", ["0.16.0", "0.16.1", "0.16.9rc1", "0.19.0", "0.19.2"])
def test_supported_releases_pass(found: str) -> None:
    assert version.check(found) == found


@pytest.mark.parametrize("found", ["0.15.3", "0.17.0", "0.17.1", "0.18.2", "0.20.0", "1.0", "1.16"])
def test_other_releases_are_refused_with_the_supported_ones_and_the_command(found: str) -> None:
    with pytest.raises(LaunchError) as caught:
        version.check(found)
    assert f"megatron-core {found} is installed" in str(caught.value)
    assert "megacode supports only 0.16 and 0.19" in str(caught.value)
    expected = "0.19.2" if sys.version_info >= (3, 12) else "0.16.1"
    assert f"pip install megatron-core=={expected} psutil" in str(caught.value)


def test_a_missing_psutil_is_refused_before_a_save_can_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match="psutil is not installed, and saving a checkpoint would hang"):
        version.check("0.16.1")


def test_a_missing_triton_is_refused_where_the_release_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "find_spec", lambda name: None if name == "triton" else object())
    assert version.check("0.16.1") == "0.16.1"
    with pytest.raises(LaunchError, match=r"0\.19\.2 imports Triton, which is not installed(.|\n)*pip install triton"):
        version.check("0.19.2")


def test_a_missing_megatron_core_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> str:
        raise version.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(version.metadata, "version", absent)
    with pytest.raises(LaunchError, match="megatron-core is not installed"):
        version.check()


def test_what_is_installed_here_is_a_release_that_was_tested() -> None:
    assert version.check() in version.TESTED.values()


def test_every_place_names_the_same_releases() -> None:
    setup = (ROOT / "setup.py").read_text()
    assert '"megatron-core>=0.16.1,!=0.17.*,!=0.18.*,<0.20"' in setup
    assert list(version.TESTED) == [(0, 16), (0, 19)]
    pinned = re.findall(r"^megatron-core==(.*)$", (ROOT / "requirements" / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned == [
        f"{version.TESTED[0, 16]}; python_version < '3.12'",
        f"{version.TESTED[0, 19]}; python_version >= '3.12'",
    ]

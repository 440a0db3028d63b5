"""Megatron-core's tests and the golden run again, with the supported release that is not installed.

`make test` puts it into `.venv/megatron-core`, and names that folder in MEGATRON_CORE_RELEASES. By hand:

    PYTHONPATH=.venv/megatron-core/0.19.2:. python -m pytest tests/mcore
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from megacode.mcore import version
from tests.limits import HANG

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("MEGATRON_CORE_RELEASES", "")
OTHER = next(release for release in version.TESTED.values() if release != metadata.version("megatron-core"))
PLACE = Path(FOLDER) / OTHER
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="make test installs the other release of megatron-core"),
    pytest.mark.skipif(OTHER.startswith("0.19.") and not find_spec("triton"), reason="megatron-core 0.19 needs Triton"),
]
# Long files are parts of their own, for the workers that run side by side; `rest` is every other file of tests/mcore.
PARTS = {
    "layouts": ["tests/mcore/test_layouts.py"],
    "checkpoints": ["tests/mcore/test_checkpoints.py"],
    "dry runs": ["tests/mcore/test_dry_run.py"],
    "golden": ["tests/train/test_ranks.py::test_golden_losses_have_not_changed",
               "tests/train/test_ranks.py::test_two_ranks_learn_what_one_process_learns"],
    "formats": ["tests/convert/test_from_megatron.py", "tests/convert/test_saved_formats.py"],
}  # fmt: skip


def rest() -> list[str]:
    listed = {file for files in PARTS.values() for file in files}
    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests" / "mcore").glob("test_*.py"))]
    return [file for file in files if file not in listed]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the other release, which comes before the installed one on the path."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    path = os.pathsep.join([str(PLACE), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def test_the_other_release_is_imported() -> None:
    program = "import megatron.core, megacode.mcore.version as v; print(v.check(), megatron.core.__file__)"
    done = run("-W", "ignore", "-c", program)
    assert done.returncode == 0, done.stderr
    release, file = done.stdout.split(maxsplit=1)
    assert release == OTHER
    assert Path(file).is_relative_to(PLACE)


@pytest.mark.parametrize("part", [*PARTS, "rest"])
def test_the_other_release_passes_too(part: str) -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not one_release", *PARTS.get(part, rest()))
    print(done.stdout[-2000:])
    assert done.returncode == 0, f"with megatron-core {OTHER}:\n{done.stdout[-20000:]}{done.stderr[-5000:]}"

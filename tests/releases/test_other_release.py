"""Megatron-core's tests and the golden run again, with the supported release that is not installed.

`make test` puts it into `.venv/megatron-core`, and names that folder in MEGATRON_CORE_RELEASES. By hand:

    PYTHONPATH=.venv/megatron-core/0.19.2:. python -m pytest tests/mcore
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from megacode.base.files import RunDir
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
RANKS, FORMATS = "tests/train/test_ranks.py", "tests/convert/test_from_megatron.py"
GOLDEN = (
    f"{RANKS}::test_golden_losses_have_not_changed",
    f"{RANKS}::test_two_ranks_learn_what_one_process_learns[tp2]",
    f"{FORMATS}::test_megacode_computes_what_megatron_computed[2-plain]",
)
# What is not run again, by file: faults made on purpose, and long tests that differ from one that is run only by dtype,
# preset, block or optimizer.
LONG = {
    "test_layouts": "can_fail or takes_only or threads or polls or dropout or tied or (four and not sequential)",
    "test_checkpoints": "(every_layout and not bf16-adamw) or two_nodes or cannot_read",
    "test_dry_run": "2.8b or fp32 or muons_owners or command or number or does_not_fit or no_torch",
}
REST = (
    "two_ranks_learn_the_same or every_recipe_learns or every_layout_resumes or (resumes_under and not shared) or "
    "every_setting_resumes or low_precision_learns or (small_real_step and muon)"
)


def parts() -> dict[str, tuple[list[str], str]]:
    """Return two parts, for workers that run side by side: the tests of each, and what of them is not run again."""
    files = {path.stem: str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests" / "mcore").glob("test_*.py"))}
    long = [files.pop(name) for name in LONG]
    once = " or ".join(f"({name} and ({tests}))" for name, tests in LONG.items())
    return {"long files and golden runs": ([*GOLDEN, *long], once), "rest": ([*files.values()], REST)}


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python with the other release, which comes before the installed one on the path."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    path = os.pathsep.join([str(PLACE), str(ROOT)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=inherited | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=3 * HANG,  # hundreds of tests
        check=False,
    )


def test_the_other_release_is_imported() -> None:
    program = "import megatron.core, megacode.mcore.version as v; print(v.check(), megatron.core.__file__)"
    done = run("-W", "ignore", "-c", program)
    assert done.returncode == 0, done.stderr
    release, file = done.stdout.split(maxsplit=1)
    assert release == OTHER
    assert Path(file).is_relative_to(PLACE)


def test_a_run_resumes_with_the_other_release_as_if_nothing_had_changed(
    golden: Path, megacode: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, compare_losses: ModuleType
) -> None:
    command = ["train", str(golden), "checkpoint.every=10 iterations"]
    done = megacode(*command, "run_dir=whole")
    assert done.returncode == 0, done.stderr
    resumed = RunDir(Path(shutil.copytree(tmp_path / "whole", tmp_path / "resumed")))
    shutil.rmtree(resumed.checkpoint(20))
    resumed.latest.write_text(f"{resumed.checkpoint(10).name}\n")
    done = run("-m", "megacode.cli", *command, "run_dir=resumed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    assert not re.search("warn|deprecated", done.stderr, re.IGNORECASE), done.stderr
    losses = [compare_losses.losses_of(str(tmp_path / name)) for name in ("whole", "resumed")]
    assert losses[0].keys() == losses[1].keys()
    assert [losses[1][i] for i in losses[0]] == pytest.approx([*losses[0].values()], abs=1e-6)


@pytest.mark.parametrize("part", [*parts()])
def test_the_other_release_passes_too(part: str) -> None:
    files, once = parts()[part]
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not one_release", "-k", f"not ({once})", *files)
    assert done.returncode == 0, f"with megatron-core {OTHER}:\n{done.stdout[-20000:]}{done.stderr[-5000:]}"
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 100, done.stdout

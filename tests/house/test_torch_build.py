"""tools/torch_build.py, run as `make` runs it, on package indexes made up here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.limits import HANG

TOOL = Path(__file__).resolve().parents[2] / "tools" / "torch_build.py"
CUDA = ("nvidia-cublas; platform_system == 'Linux'", "nvidia-nccl-cu13==2.28", "cuda-bindings", "nvidia-cudnn-cu13")


def index_with(folder: Path, version: str, needs: tuple[str, ...] = ()) -> str:
    """Make a package index that offers one wheel of torch, and return its address."""
    package = folder / "torch"
    package.mkdir(parents=True)
    wheel = package / f"torch-{version}-py3-none-any.whl"
    metadata = "".join(f"Requires-Dist: {name}\n" for name in needs)
    with zipfile.ZipFile(wheel, "w") as file:
        info = f"torch-{version}.dist-info"
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n{metadata}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    (package / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    return folder.as_uri()


def check(index: str, *options: str, path: str = "/nowhere") -> subprocess.CompletedProcess[str]:
    """Run the tool on a machine whose pip knows one index, and whose programs lie in one directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment = {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_NO_CACHE_DIR": "1", "PATH": path}
    command = [sys.executable, str(TOOL), "torch==2.13.0", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG, check=False)


@pytest.mark.skipif(platform.system() != "Linux", reason="CUDA builds are Linux's")
def test_a_cuda_build_is_refused_where_there_is_no_gpu(tmp_path: Path) -> None:
    done = check(index_with(tmp_path, "2.13.0", CUDA))
    assert done.returncode == 2
    assert "torch 2.13.0 is a CUDA build, and this machine has no NVIDIA GPU" in done.stderr
    assert "cuda-bindings, nvidia-cublas, nvidia-cudnn-cu13 and others, 4 packages" in done.stderr
    assert "make TORCH_INDEX=URL" in done.stderr
    assert "make TORCH=torch==2.13.0" in done.stderr


def test_a_cuda_build_is_taken_where_there_is_a_gpu(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    done = check(index_with(tmp_path / "index", "2.13.0", CUDA), path=str(program.parent))
    assert done.returncode == 0, done.stderr


def test_a_cpu_build_is_taken_and_nothing_is_said(tmp_path: Path) -> None:
    done = check(index_with(tmp_path, "2.13.0+cpu", ("filelock",)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_index_is_asked_in_place_of_pip_s_own(tmp_path: Path) -> None:
    default = index_with(tmp_path / "default", "2.13.0", CUDA)
    other = index_with(tmp_path / "other", "2.13.0+cpu")
    assert check(default, "--index", other).returncode == 0


def test_libraries_of_another_machine_do_not_count(tmp_path: Path) -> None:
    done = check(index_with(tmp_path, "2.13.0", ("nvidia-nccl-cu13; platform_machine == 'pdp11'",)))
    assert done.returncode == 0, done.stderr


def test_no_build_at_all_is_said_with_pip_s_words(tmp_path: Path) -> None:
    done = check(index_with(tmp_path, "2.12.0+cpu"))
    assert done.returncode == 2
    assert "pip finds no build of torch==2.13.0 here:" in done.stderr
    assert "2.12.0+cpu" in done.stderr
    assert "make TORCH=FILE.whl" in done.stderr

#!/usr/bin/env python3
"""Say which build of torch pip would install, before it downloads the CUDA libraries that belong to it.

Some package indexes offer only CUDA builds of torch. On a machine without a GPU those bring several gigabytes that
nothing can use. This program asks pip for its choice without installing anything, and refuses such a build. It needs
the standard library and pip 23 or newer. pip older than 23.3 has to download torch's own wheel to answer; the CUDA
libraries behind it are not touched.

    python tools/torch_build.py torch==2.13.0 [--index URL]

Exit codes: 0 the build suits this machine; 2 it does not, or pip found none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

CUDA_PACKAGE = re.compile(r"(nvidia|cuda)-")
MACHINE = re.compile(r"platform_machine\s*==\s*['\"](\w+)['\"]")

OTHER_BUILDS = """\
    make TORCH_INDEX=URL        takes torch from another index; PyTorch's install page names the one with CPU builds
    make TORCH=FILE.whl         takes a wheel that you have"""
SAME_BUILD = """
    make TORCH={requirement}    takes the CUDA build all the same, to prepare a machine with GPUs"""


def main() -> int:
    """Check one requirement; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requirement", help="such as torch==2.13.0")
    parser.add_argument("--index", help="the index to ask in place of pip's own")
    args = parser.parse_args()
    try:
        wheel = chosen_wheel(args.requirement, args.index)
    except subprocess.CalledProcessError as error:
        return refuse(f"pip finds no build of {args.requirement} here:\n{error.stderr.strip()}\n{OTHER_BUILDS}")
    libraries = cuda_libraries(wheel)
    # nvidia-smi comes with the driver, without which no CUDA build can compute.
    if libraries and not shutil.which("nvidia-smi"):
        named = (
            f"{', '.join(libraries[:3])} and others, {len(libraries)} packages"
            if len(libraries) > 3
            else ", ".join(libraries)
        )
        message = f"torch {wheel['version']} is a CUDA build, and this machine has no NVIDIA GPU (no nvidia-smi)"
        ways = OTHER_BUILDS + SAME_BUILD.format(requirement=args.requirement)
        return refuse(f"{message}.\nIt would download gigabytes of libraries: {named}.\n{ways}")
    return 0


def chosen_wheel(requirement: str, index: str | None) -> dict[str, Any]:
    """Return the metadata of the wheel that pip would install.

    Raises:
        subprocess.CalledProcessError: pip found none, or could not reach its index.
    """
    with tempfile.TemporaryDirectory() as folder:
        # A file, because pip writes warnings to standard output too.
        report = os.path.join(folder, "report.json")
        # Without dependencies, or pip would fetch the very libraries that this is to prevent.
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        command += ["--index-url", index] if index else []
        subprocess.run([*command, "--report", report, requirement], check=True, capture_output=True, text=True)
        with open(report, encoding="utf-8") as file:
            metadata: dict[str, Any] = json.load(file)["install"][0]["metadata"]
    return metadata


def cuda_libraries(wheel: dict[str, Any]) -> list[str]:
    """Return the CUDA packages that a wheel's metadata asks for on this machine; none for a CPU build."""
    # Without +cpu a wheel for Linux may bring CUDA. Its own requirements say so.
    if platform.system() != "Linux" or wheel["version"].endswith("+cpu"):
        return []
    needed = [line for line in wheel.get("requires_dist", []) if CUDA_PACKAGE.match(line.lower())]
    # A requirement without a marker counts on every machine.
    here = [line for line in needed if MACHINE.findall(line) in ([], [platform.machine()])]
    return sorted({re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in here})


def refuse(message: str) -> int:
    """Say what is wrong and how to go on; return the exit code."""
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

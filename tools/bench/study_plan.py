#!/usr/bin/env python3
"""Measure `megacode study plan`: seconds and peak memory of the whole process, and whether torch was loaded.

tools/bench/study_plan.py [STUDY.yaml] [--repeats 5] [--arms 0]

--arms N adds N arms of random phases to the study, to see how the plan grows.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
# A process of its own, imports included: that is what a user waits for.
# torch alone would double it: importing torch takes 1 s of CPU time and 145 to 204 MiB.
PROGRAM = """
import sys
sys.argv = ["megacode", "study", "plan", sys.argv[1], "--json"]
from megacode.cli import main
try:
    main()
finally:
    loaded = [name for name in ("torch", "transformers", "lm_eval", "scipy") if name in sys.modules]
    print(",".join(loaded), file=sys.stderr)
"""


def main() -> int:
    """Print one line of JSON with what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", type=Path, default=ROOT / "examples" / "studies" / "to_code.yaml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arms", type=int, default=0, help="arms to add")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = enlarged(args.study, args.arms, Path(folder)) if args.arms else args.study
        seconds, loaded = [], ""
        cpu: list[float] = []
        for _ in range(args.repeats):
            # Usage of children adds up over the repeats, so each one is a difference.
            begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(study)], cwd=ROOT, capture_output=True, text=True, check=True
            )
            seconds.append(time.perf_counter() - begun)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            document_printed = json.loads(done.stdout)
            loaded = done.stderr.strip()
    # The largest child's, in KiB. It includes this program's own memory at the fork, which is smaller.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    row = {
        "study": args.study.name,
        "cells": len(document_printed["arms"]),
        "nodes": len(document_printed["nodes"]),
        "seconds_median": round(statistics.median(seconds), 3),
        "seconds_best": round(min(seconds), 3),
        # The steadiest figure: other load on the machine can only add to it.
        "cpu_seconds_best": round(min(cpu), 3),
        "peak_mib": round(peak / 1024, 1),
        "loaded": loaded,
    }
    print(json.dumps(row))
    return 0


def enlarged(path: Path, count: int, folder: Path) -> Path:
    """Write a study with arms added at every scale but those of `only`, each of three phases, no two alike."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["base"] = str((path.parent / document["base"]).resolve())
    draw, phases = random.Random(0), sorted(document["phases"])
    # A phase without a peak takes over the rate before it, so it cannot come first.
    first = [name for name in phases if "peak" in document["phases"][name]["learning_rate"]]
    declared = {tuple(arm.get("phases", ())) for arm in document["arms"].values()}
    added: set[tuple[str, ...]] = set()
    while len(added) < count:
        # Equal arms would share their runs, and the plan would not grow.
        added |= {(draw.choice(first), *draw.choices(phases, k=2))} - declared
    document["arms"] |= {f"added-{number}": {"phases": list(uses)} for number, uses in enumerate(sorted(added))}
    larger = folder / path.name
    larger.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return larger


if __name__ == "__main__":
    sys.exit(main())

"""Takes the right to score a checkpoint of a run, says so, and keeps it until its standard input ends."""

from __future__ import annotations

import sys

from megacode.base.files import RunDir
from megacode.base.logs import setup_logging
from megacode.eval.checkpoint_scores import scoring_alone

if __name__ == "__main__":
    setup_logging()
    with scoring_alone(RunDir(sys.argv[1]), int(sys.argv[2])):
        print("in", flush=True)
        sys.stdin.read()

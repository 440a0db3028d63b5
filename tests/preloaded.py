"""What the fork server of tests/ranks.py has imported when it forks: what most ranks and commands import.

Nothing here may start a thread, which a fork would not copy.
"""

import importlib
import os

from megacode.base.imports import uncollected

with uncollected():
    for _name in (
        "torch._dynamo",  # which torch's optimizers import when they are made
        "megacode.checkpoint.tensors",
        "megacode.mcore.build",
        "megacode.mcore.step",
        "megacode.train.main",
        "megacode.cli",
        "tests.forked",
    ):
        importlib.import_module(_name)

assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread"

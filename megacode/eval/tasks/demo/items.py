"""Loads the demo suite's items: JSON lines that `megacode demo` made from documents no phase trains on.

Needs nothing of megacode, so lm-eval's own command runs these tasks too:

    lm_eval --include_path megacode/eval/tasks/demo --metadata '{"items": "RUN/eval/items/demo"}' --tasks demo ...
"""

import json
from pathlib import Path

import datasets


def load(file: str, items: str = "", **_: object) -> dict[str, datasets.Dataset]:
    """Return the items of one task as lm-eval's `test` split, held in memory; nothing is cached on disk.

    Args:
        file: name of the task's file.
        items: the directory it lies in.
    """
    lines = (Path(items) / file).read_bytes().splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}

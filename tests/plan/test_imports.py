from __future__ import annotations

import pkgutil
import subprocess
import sys

import megacode

PROGRAM = """
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
heavy = [name for name in ("torch", "transformers", "megatron", "lm_eval", "pandas", "scipy") if name in sys.modules]
assert not heavy, heavy
"""


def test_planning_loads_no_torch() -> None:
    rooms = {"plan", "capacity", "planning"}
    names = [
        f"megacode.{room}.{module.name}"
        for room in sorted(rooms)
        for module in pkgutil.iter_modules([f"{megacode.__path__[0]}/{room}"])
    ]
    assert {name.split(".")[1] for name in names} == rooms
    assert "megacode.planning.tables" in names
    subprocess.run([sys.executable, "-c", PROGRAM.format(names=names)], check=True)

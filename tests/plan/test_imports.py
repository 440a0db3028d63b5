from __future__ import annotations

import pkgutil
import subprocess
import sys

import megacode.plan

PROGRAM = """
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
heavy = [name for name in ("torch", "transformers", "megatron", "lm_eval", "pandas", "scipy") if name in sys.modules]
assert not heavy, heavy
"""


def test_planning_loads_no_torch() -> None:
    names = [f"megacode.plan.{module.name}" for module in pkgutil.iter_modules(megacode.plan.__path__)]
    assert "megacode.planning.tables" in names
    subprocess.run([sys.executable, "-c", PROGRAM.format(names=names)], check=True)

"""Entry point of `python -m megacode.cli`, and of ranks, which are started by its path (`base.child_processes`)."""

import importlib.util
import sys
from pathlib import Path


def _import_this_package() -> None:
    """Import the megacode that this file belongs to, even if another one is installed."""
    # A rank must run the code of the process that started it, or two versions would train one model.
    package = Path(__file__).absolute().parents[1]
    place = str(package / "__init__.py")
    spec = importlib.util.spec_from_file_location("megacode", place, submodule_search_locations=[str(package)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["megacode"] = module  # before it runs: its own imports look here
    spec.loader.exec_module(module)
    sys.argv[0] = "megacode"  # the name in messages about usage


if __name__ == "__main__":
    if __package__ is None:  # run by its path
        _import_this_package()
    from megacode.cli import main

    main()

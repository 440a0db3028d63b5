"""`python -m megacode.cli`, and by its path (`base.children`): how ranks are started."""

import importlib.util
import sys
from pathlib import Path


def _import_this_package() -> None:
    """Import the megacode that this file belongs to, wherever another one may lie."""
    package = Path(__file__).absolute().parents[1]
    place = str(package / "__init__.py")
    spec = importlib.util.spec_from_file_location("megacode", place, submodule_search_locations=[str(package)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["megacode"] = module
    spec.loader.exec_module(module)
    sys.argv[0] = "megacode"  # the name in messages about usage


if __name__ == "__main__":
    if __package__ is None:  # run by its path
        _import_this_package()
    from megacode.cli import main

    main()

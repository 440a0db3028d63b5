"""A working directory in which lm-eval's own task files find small data in the real formats, and a tiny model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ITEMS = 3


@pytest.fixture(scope="session")
def to_code_data() -> ModuleType:
    """What writes small data sets in the real formats."""
    spec = importlib.util.spec_from_file_location("to_code_data", Path(__file__).with_name("to_code_data.py"))
    assert spec is not None
    assert spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    return data


@pytest.fixture(scope="session")
def to_code(to_code_data: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (
        """A directory with the data sets' folders, `cache/` and two models, `model/` and `other/`.

    It is copied before it is changed.
    """
        ""
    )
    place = tmp_path_factory.mktemp("to_code")
    to_code_data.write_data_sets(place, ITEMS)
    to_code_data.write_own_data(place / "cache", ITEMS)
    to_code_data.save_model(place / "model")
    to_code_data.save_model(place / "other", seed=1)
    return place

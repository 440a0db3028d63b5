"""A working directory in which lm-eval's own task files find small data in the real formats, and a tiny model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ITEMS = 3


@pytest.fixture(scope="session")
def to_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the data sets' folders, `cache/` and the models `model/` and `other/`; to be copied before it is changed."""
    spec = importlib.util.spec_from_file_location("to_code_data", Path(__file__).with_name("to_code_data.py"))
    assert spec is not None
    assert spec.loader is not None
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    place = tmp_path_factory.mktemp("to_code")
    data.write_data_sets(place, ITEMS)
    data.write_own_data(place / "cache", ITEMS)
    data.save_model(place / "model")
    data.save_model(place / "other", seed=1)
    return place

"""A run whose sources lie in object storage trains as one with local files does."""

from __future__ import annotations

import pytest

from tests.data.object_storage import proxy, server, upload
from tests.train.test_loaders import measured

__all__ = ["proxy", "server", "upload"]  # fixtures

pytestmark = pytest.mark.slow


def test_a_run_measures_the_same_to_the_last_bit_from_object_storage(golden, proxy, upload, tmp_path) -> None:
    there = [f"sources.{name}.path={upload(str(tmp_path / 'data' / name))}" for name in ("prose", "code")]
    cache = f"objects.cache={tmp_path / 'cache'}"
    assert measured(golden, "remote", *there, cache) == measured(golden, "local")
    assert proxy.gets()

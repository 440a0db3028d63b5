"""A run whose sources lie in object storage trains as one with local files does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.object_storage import BUCKET, proxy, server, upload
from tests.ranks import run_ranks
from tests.train.test_loaders import measured

__all__ = ["proxy", "server", "upload"]  # fixtures

pytestmark = pytest.mark.slow


def test_a_run_measures_the_same_to_the_last_bit_from_object_storage(golden, proxy, upload, tmp_path) -> None:
    there = [f"sources.{name}.path={upload(str(tmp_path / 'data' / name))}" for name in ("prose", "code")]
    cache = f"objects.cache={tmp_path / 'cache'}"
    assert measured(golden, "remote", *there, cache) == measured(golden, "local")
    assert proxy.gets()


def test_ranks_that_see_two_versions_of_an_object_are_refused_with_its_name(golden, proxy, upload, tmp_path) -> None:
    there = {name: upload(str(tmp_path / "data" / name)) for name in ("prose", "code")}
    overrides = [f"sources.{name}.path={url}" for name, url in there.items()]
    overrides += [f"objects.cache={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}"]
    arguments = {
        "config": str(golden),
        "overrides": overrides,
        "bucket": BUCKET,
        "key": f"{tmp_path.name}/code.bin",
        "file": str(tmp_path / "data" / "code.bin"),
        "marker": str(tmp_path / "looked"),
    }
    first, second = run_ranks(2, Path(__file__).with_name("objects_program.py"), "start", arguments)
    assert first == second
    assert f"objects.{there['code']}.bin: rank 1: " in first
    assert "prose" not in first
    assert not list((tmp_path / "run").glob("checkpoints/iter_*"))

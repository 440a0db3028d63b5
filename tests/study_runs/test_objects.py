"""A study whose sources lie in object storage has the states of local files, and trains the same weights."""

from __future__ import annotations

import shutil

import pytest

from tests.data.object_storage import proxy, server, upload
from tests.study_runs.test_running import same, weights

__all__ = ["proxy", "server", "upload"]  # fixtures

pytestmark = pytest.mark.slow


def test_a_study_moves_to_object_storage_and_trains_what_it_trained_from_files(
    trained, proxy, upload, study_data, tmp_path
) -> None:
    cache, expected, before = tmp_path / "a cache", weights(trained, "longer"), trained.iterations()
    settings = trained.document["set"]
    settings["sources"] = {name: {"path": upload(str(study_data / name))} for name in ("text", "code")}
    settings["objects"] = {"cache": str(cache)}
    code, printed = trained.run()
    assert code == 0, printed
    assert trained.iterations() == before, "all states are there: they do not depend on where the data lie"
    assert list(cache.rglob("whole"))
    (run,) = trained.place.path.glob("longer-s1-*")
    shutil.rmtree(run)
    code, printed = trained.run()
    assert code == 0, printed
    assert same(weights(trained, "longer"), expected)

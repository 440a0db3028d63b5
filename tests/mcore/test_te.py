"""Which Transformer Engine is used: by its release, and by that of Megatron-core."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from megacode.mcore import fp8_scales, te

pytestmark = pytest.mark.one_release  # nothing here calls Megatron-core


@pytest.fixture
def obstacle(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Return a function from releases of both to what it would say on a GPU."""

    def ask(core: str, engine: str) -> str:
        versions = {"megatron-core": core, "transformer-engine": engine, "transformer-engine-torch": engine}
        monkeypatch.setattr(te, "_version", versions.__getitem__)
        monkeypatch.setattr(te, "_on_gpu", lambda: True)
        return te.obstacle()

    return ask


@pytest.mark.parametrize(
    ("core", "engine"),
    [
        ("0.16.1", "2.9.0"),
        ("0.16.1", "2.11.0"),
        ("0.19.2", "2.9.0"),
        ("0.19.2", "2.17.1+4329ff84"),
        ("0.19.2", "2.20.2"),
    ],
)
def test_releases_that_go_together_are_used(obstacle: Callable[[str, str], str], core: str, engine: str) -> None:
    assert obstacle(core, engine) == ""


@pytest.mark.parametrize(
    ("core", "engine", "below"),
    [("0.16.1", "2.8.0", "2.12.0"), ("0.16.1", "2.12.0", "2.12.0"), ("0.19.2", "2.8.0", "2.21.0"),
     ("0.19.2", "2.21.0", "2.21.0")],
)  # fmt: skip
def test_others_are_named_with_the_supported_ones(
    obstacle: Callable[[str, str], str], core: str, engine: str, below: str
) -> None:
    said = obstacle(core, engine)
    assert f"Transformer Engine {engine} is installed" in said
    assert f"with megatron-core {core} megacode supports 2.9.0 up to, not including, {below}" in said


@pytest.mark.parametrize("before", [None, "0"])
def test_pickles_are_allowed_for_one_call_only(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    name = fp8_scales._ALLOW_PICKLES
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    with pytest.raises(RuntimeError, match=f"{name}=1"), fp8_scales._pickles_allowed():
        raise RuntimeError(f"{name}={os.environ[name]}")
    assert os.environ.get(name) == before

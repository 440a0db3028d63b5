"""Which apex is here: NVIDIA's, of which parts are built, or the web toolkit that PyPI has under that name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megacode import doctor
from megacode.mcore import apex

pytestmark = pytest.mark.one_release  # nothing here calls Megatron-core

NVIDIAS = ("apex/__init__.py", "apex/multi_tensor_apply/__init__.py", "apex/optimizers/__init__.py")
EXTENSIONS = ("amp_C.py", "fused_weight_gradient_mlp_cuda.py")
WEB_TOOLKIT = ("apex/__init__.py", "apex/models.py", "apex/forms.py", "apex/views.py", "apex/lib/__init__.py")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], Path]:
    """Lay out a package of these files, none of which can be imported; return where."""

    def lay_out(files: Sequence[str]) -> Path:
        for name in files:
            path = tmp_path / "site" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("raise RuntimeError('only looked for, never imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        importlib.invalidate_caches()
        return tmp_path / "site" / "apex"

    return lay_out


def row(engine: str = "") -> doctor.Finding:
    return doctor._apex(engine)


def test_no_apex_is_nothing_to_worry_about() -> None:
    assert apex.find() == apex.Apex("none")
    assert row() == {"part": "apex", "found": "", "path": "not needed: torch replaces it"}


def test_the_web_toolkit_of_that_name_is_told_from_nvidias(installed: Callable[..., Path]) -> None:
    place = installed(WEB_TOOLKIT)
    assert apex.find() == apex.Apex("other", str(place))
    found = row()
    assert found["found"] == ""
    assert f"{place} is not NVIDIA's apex" in found["path"]
    assert "python -m pip uninstall apex" in found["path"]


def test_nvidias_apex_is_known_by_its_parts(installed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    place = installed([*NVIDIAS, *EXTENSIONS])
    found = apex.find()
    assert found == apex.Apex("nvidia", str(place), ("Adam", "multi-tensor scale", "weight gradient"))
    assert found.used(engine=False) == ("Adam", "multi-tensor scale")
    assert found.used(engine=True) == ()
    assert row()["path"].endswith("lack: Adam, multi-tensor scale")
    assert row("2.11.0")["path"] == "not used: Transformer Engine and torch replace it"
    monkeypatch.setattr(apex, "torch_adds_in_fp32", lambda: False)
    assert found.used(engine=True) == ("weight gradient",)
    assert row("2.11.0")["path"].endswith("lack: weight gradient")


def test_nvidias_apex_without_its_extensions_has_no_parts(installed: Callable[..., Path]) -> None:
    place = installed(NVIDIAS)
    assert apex.find() == apex.Apex("nvidia", str(place), ())
    assert row()["found"] == "(built without its CUDA parts)"
    assert row()["path"] == "not used: torch replaces it"


def test_an_old_torch_without_apex_is_told_what_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apex, "torch_adds_in_fp32", lambda: False)
    assert "weight gradients in one pass: update torch" in row()["path"]


def test_the_extension_is_called_only_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    extension = SimpleNamespace(wgrad_gemm_accum_fp32=lambda *tensors: calls.append(tensors))
    monkeypatch.setattr(apex, "_extension", lambda: extension)
    main_grad = torch.zeros(2, 3)

    def on_gpu(*shape: int, dtype: torch.dtype = torch.bfloat16) -> SimpleNamespace:
        tensor = SimpleNamespace(is_cuda=True, dtype=dtype, shape=shape)
        tensor.contiguous = lambda: tensor
        return tensor

    x, gradient = on_gpu(4, 3), on_gpu(4, 2)
    assert apex.add_weight_gradient(gradient, x, main_grad)
    assert calls == [(x, gradient, main_grad)]
    assert not apex.add_weight_gradient(torch.zeros(4, 2), torch.zeros(4, 3), main_grad)
    assert not apex.add_weight_gradient(on_gpu(4, 2, dtype=torch.float32), on_gpu(4, 3, dtype=torch.float32), main_grad)
    assert not apex.add_weight_gradient(gradient, x, main_grad.bfloat16())
    assert not apex.add_weight_gradient(gradient, x, torch.zeros(3, 2).t())
    monkeypatch.setattr(apex, "_extension", lambda: None)
    assert not apex.add_weight_gradient(gradient, x, main_grad)
    assert len(calls) == 1

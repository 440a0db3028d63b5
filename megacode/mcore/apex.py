"""Find NVIDIA's apex and its built extensions, and call the one that megacode uses itself. apex is optional.

mcore looks for fused Adam and for multi-tensor scaling in Transformer Engine, then in apex, then in torch. It has no
fallback for a third part: the matrix product that accumulates a weight's gradient into an fp32 buffer, for linear
layers that are not Transformer Engine's. torch can do that since `addmm` takes `out_dtype`; before, only apex could.

PyPI's `apex` is a different package, a web toolkit. `pip install apex` installs that one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

WEIGHT_GRADIENT = "fused_weight_gradient_mlp_cuda"
_PARTS = {
    "Adam": ("apex.optimizers", "amp_C"),
    "multi-tensor scale": ("apex.multi_tensor_apply", "amp_C"),
    "weight gradient": (WEIGHT_GRADIENT,),
}
_NVIDIAS = ("multi_tensor_apply", "optimizers")  # subpackages that tell NVIDIA's apex from the other one


@dataclass(frozen=True)
class Apex:
    """The package named apex on this machine.

    Attributes:
        kind: NVIDIA's, another package of that name, or none.
        place: its directory; empty if there is none.
        parts: which of `Adam`, `multi-tensor scale` and `weight gradient` are built.
    """

    kind: Literal["none", "nvidia", "other"]
    place: str = ""
    parts: tuple[str, ...] = ()

    def used(self, engine: bool) -> tuple[str, ...]:
        """Return the parts that a training step on a GPU uses.

        Args:
            engine: whether Transformer Engine is installed; it has the first two parts.
        """
        wanted: tuple[str, ...] = () if engine else ("Adam", "multi-tensor scale")
        if not torch_adds_in_fp32():
            wanted += ("weight gradient",)
        return tuple(part for part in self.parts if part in wanted)


def find() -> Apex:
    """Look for apex without importing it: either package may fail to import, for lack of its dependencies."""
    spec = importlib.util.find_spec("apex")
    built = tuple(name for name, modules in _PARTS.items() if all(map(_there, modules)))
    if spec is None:
        # The extensions are top-level modules. They stay behind when the package is uninstalled.
        return Apex("none", parts=tuple(part for part in built if part == "weight gradient"))
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    place = str(places[0]) if places else spec.origin or ""
    if not any(all((folder / name).is_dir() for name in _NVIDIAS) for folder in places):
        return Apex("other", place)
    return Apex("nvidia", place, built)


def _there(module: str) -> bool:
    """Return whether a module exists; `find_spec` of a dotted name would import the parent package."""
    package, _, name = module.rpartition(".")
    if not package:
        return importlib.util.find_spec(module) is not None
    spec = importlib.util.find_spec(package)
    return spec is not None and any((Path(p) / name).is_dir() for p in spec.submodule_search_locations or ())


@functools.cache
def torch_adds_in_fp32() -> bool:
    """Return whether torch's `addmm` can add a product of bf16 matrices to an fp32 matrix."""
    # The operator's schema says so on every build. A version number would not: vendors patch theirs.
    return any("out_dtype" in str(schema) for schema in torch._C._jit_get_schemas_for_operator("aten::addmm"))


@functools.cache
def _extension() -> Any:
    """Return apex's extension; None if it is missing, or was built for another torch and cannot be loaded."""
    try:
        return importlib.import_module(WEIGHT_GRADIENT)
    except ImportError:
        return None


def add_weight_gradient(gradient: Tensor, x: Tensor, main_grad: Tensor) -> bool:
    """Add gradient^T x to a weight's `main_grad` in one product, by apex's GPU extension.

    Args:
        gradient: [n, out], bf16 or fp16 on this rank's GPU.
        x: [n, in], of the same type.
        main_grad: [out, in] fp32, written in place.

    Returns:
        True if it was added. False if nothing was done: no extension, or tensors that it does not take.
    """
    # The extension writes through a raw pointer, so `main_grad` must be contiguous fp32.
    fits = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and gradient.dtype == x.dtype
    if not fits or main_grad.dtype != torch.float32 or not main_grad.is_contiguous() or _extension() is None:
        return False
    _extension().wgrad_gemm_accum_fp32(x.contiguous(), gradient.contiguous(), main_grad)
    return True

"""NVIDIA's apex: find out which of its parts are built, and call the one that megacode itself uses. Never required.

mcore looks for each part in Transformer Engine, then in apex, then in torch: Adam in one kernel, and scaling many
tensors at once. One part has no substitute in mcore: the product that adds a weight's gradient directly to an fp32
buffer, for linear layers that are not Transformer Engine's. torch has it since `addmm` takes `out_dtype`; before that,
only apex has it.

Another package is named apex too: PyPI's is a toolkit for web sites, which is what `pip install apex` installs.
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
# For each part, the modules that it needs.
_PARTS = {
    "Adam": ("apex.optimizers", "amp_C"),
    "multi-tensor scale": ("apex.multi_tensor_apply", "amp_C"),
    "weight gradient": (WEIGHT_GRADIENT,),
}
_NVIDIAS = ("multi_tensor_apply", "optimizers")  # packages in NVIDIA's apex, since its first release


@dataclass(frozen=True)
class Apex:
    """The package named apex on this machine.

    Attributes:
        kind: NVIDIA's, another package of that name, or none.
        place: its directory; empty if there is none.
        parts: NVIDIA's parts that are built, of `Adam`, `multi-tensor scale` and `weight gradient`.
    """

    kind: Literal["none", "nvidia", "other"]
    place: str = ""
    parts: tuple[str, ...] = ()

    def used(self, engine: bool) -> tuple[str, ...]:
        """Return the parts that a training step on a GPU takes from it.

        Args:
            engine: whether Transformer Engine is installed, which has the first two.
        """
        wanted: tuple[str, ...] = () if engine else ("Adam", "multi-tensor scale")
        if not torch_adds_in_fp32():
            wanted += ("weight gradient",)
        return tuple(part for part in self.parts if part in wanted)


def find() -> Apex:
    """Look for apex without importing it: neither package of that name can be imported everywhere."""
    spec = importlib.util.find_spec("apex")
    built = tuple(name for name, modules in _PARTS.items() if all(map(_there, modules)))
    if spec is None:
        # The extensions are modules of their own, and may outlive the package.
        return Apex("none", parts=tuple(part for part in built if part == "weight gradient"))
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    place = str(places[0]) if places else spec.origin or ""
    if not any(all((folder / name).is_dir() for name in _NVIDIAS) for folder in places):
        return Apex("other", place)
    return Apex("nvidia", place, built)


def _there(module: str) -> bool:
    package, _, name = module.rpartition(".")
    if not package:
        return importlib.util.find_spec(module) is not None
    spec = importlib.util.find_spec(package)
    return spec is not None and any((Path(p) / name).is_dir() for p in spec.submodule_search_locations or ())


@functools.cache
def torch_adds_in_fp32() -> bool:
    """Return whether torch's own product of bf16 matrices can be added to an fp32 one."""
    return any("out_dtype" in str(schema) for schema in torch._C._jit_get_schemas_for_operator("aten::addmm"))


@functools.cache
def _extension() -> Any:
    """Return apex' extension; None if it is missing, or was built for another torch and cannot be loaded."""
    try:
        return importlib.import_module(WEIGHT_GRADIENT)
    except ImportError:
        return None


def add_weight_gradient(gradient: Tensor, x: Tensor, main_grad: Tensor) -> bool:
    """Add gradient^T x to a weight's `main_grad` in one product, on a GPU and by apex' extension.

    Args:
        gradient: [n, out], bf16 or fp16 on this rank's GPU.
        x: [n, in], of the same type.
        main_grad: [out, in] fp32, written in place.

    Returns:
        Whether it was added. If not, nothing happened: the extension is missing, or it cannot take these tensors.
    """
    fits = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and gradient.dtype == x.dtype
    if not fits or main_grad.dtype != torch.float32 or not main_grad.is_contiguous() or _extension() is None:
        return False
    _extension().wgrad_gemm_accum_fp32(x.contiguous(), gradient.contiguous(), main_grad)
    return True

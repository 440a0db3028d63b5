"""Transformer Engine: whether it is installed, whether its layers are used, which FP8 recipes this machine supports.

Without CUDA, FP8 products are emulated (`fp8_emulation`): rounded as on a GPU, but slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import get_args

from megacode.base.errors import Problem
from megacode.config.run import RunConfig
from megacode.config.training import Fp8
from megacode.mcore.version import parse

# Releases that megacode is tested with. Private names, such as a layer's quantizers, move between minor releases.
OLDEST = (2, 9, 0)
BELOW = (2, 12, 0)
PINNED = "2.11.0"
_INSTALL = f"python -m pip install --no-build-isolation 'transformer-engine[pytorch]=={PINNED}'"


def installed() -> str:
    """Return the version of Transformer Engine; empty if it is not installed."""
    return _version("transformer-engine")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _on_gpu() -> bool:
    """Return whether this machine trains on CUDA; does not import torch if it is a CPU build."""
    if _version("torch").endswith("+cpu"):
        return False
    from megacode.mcore import device

    return device.on_gpu()


def obstacle() -> str:
    """Return why Transformer Engine's layers cannot run on this machine; empty if they can."""
    if not _on_gpu():
        return "Transformer Engine's layers need a GPU"
    release = installed()
    if not release:
        return "Transformer Engine is not installed"
    if not OLDEST <= parse(release) < BELOW:
        oldest, below = ".".join(map(str, OLDEST)), ".".join(map(str, BELOW))
        return (
            f"Transformer Engine {release} is installed, but megacode supports {oldest} up to, not including, {below}"
        )
    # A package of its own, compiled for one version of torch.
    return "" if _version("transformer-engine-torch") else "Transformer Engine is installed without its part for torch"


def used(config: RunConfig) -> bool:
    """Return whether a run's blocks are Transformer Engine's."""
    # `auto` only in bf16: Transformer Engine's attention has no fp32 kernel.
    asked, bf16 = config.precision.transformer_impl, config.precision.dtype == "bf16"
    return asked == "transformer_engine" or (asked == "auto" and bf16 and not obstacle())


def recipes() -> tuple[str, ...]:
    """Return the FP8 recipes that this machine supports."""
    names = get_args(Fp8.model_fields["recipe"].annotation)
    refuses = _missing if _on_gpu() else _not_emulated
    return tuple(name for name in names if not refuses(Fp8(recipe=name)))


def problems(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem for each of a run's number formats that this machine does not support."""
    why = obstacle()
    if config.precision.transformer_impl == "transformer_engine" and why:
        fix = "use transformer_impl: auto" if not _on_gpu() else f"{_INSTALL}, or use transformer_impl: auto"
        yield Problem(why, "precision.transformer_impl", fix)
        return
    if used(config) and config.precision.dtype != "bf16":
        what = "Transformer Engine's attention computes in bf16, not in fp32"
        yield Problem(what, "precision.transformer_impl", "use transformer_impl: auto, or precision.dtype: bf16")
    for recipe in config.fp8_recipes:
        yield from _recipe_problems(config, recipe, why)


def _recipe_problems(config: RunConfig, recipe: Fp8, why: str) -> Iterator[Problem]:
    where = "precision.fp8"
    if _on_gpu() and not used(config):
        fix = f"{_INSTALL}, or set precision.fp8: none" if why else "set precision.dtype: bf16, or precision.fp8: none"
        yield Problem(why or "FP8 on a GPU needs Transformer Engine's layers, in bf16", where, fix)
        return
    missing = _missing(recipe) if _on_gpu() else _not_emulated(recipe)
    if missing:
        fix = "use recipe tensorwise or delayed, or precision.fp8: none"
        yield Problem(f"recipe {recipe.recipe}: {missing}", f"{where}.recipe", fix)
    if recipe.param_gather and not _on_gpu():
        what = "param_gather needs Transformer Engine's layers, and they need a GPU"
        yield Problem(what, f"{where}.param_gather", "set it to false")


def _missing(recipe: Fp8) -> str:
    """Return why this GPU does not support a recipe; empty if it does."""
    # Transformer Engine knows the GPU's generation and the CUDA version that each recipe needs.
    from transformer_engine.pytorch import quantization as te

    asked = {
        "delayed": te.is_fp8_available,
        "tensorwise": te.is_fp8_available,
        "blockwise": te.is_fp8_block_scaling_available,
        "mxfp8": te.is_mxfp8_available,
    }
    able, reason = asked[recipe.recipe](return_reason=True)
    return "" if able else str(reason)


def _not_emulated(recipe: Fp8) -> str:
    return "it needs a Blackwell GPU, and is not emulated" if recipe.recipe == "mxfp8" else ""

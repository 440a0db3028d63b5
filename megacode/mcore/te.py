"""Transformer Engine: is it installed, does a run use its layers, and which FP8 recipes can this machine compute.

Without CUDA, FP8 products are emulated (`fp8_emulation`): rounded as on a GPU, but slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import get_args

from megacode.base.errors import Problem
from megacode.config.optimizer_memory_rules import first_reduced
from megacode.config.run import RunConfig
from megacode.config.training import Fp8
from megacode.mcore.version import for_this_python, parse

OLDEST = (2, 9, 0)
# By Megatron-core's minor release. 0.16 declares the bound itself; 0.19 declares none, so there it is the first release
# in whose source `tools/engine_names.py` has not looked for the names that megacode uses.
_BELOW = {(0, 16): (2, 12, 0), (0, 19): (2, 21, 0)}
MEASURED = "2.11.0"  # with Megatron-core 0.16, on a GPU; no other pair has run on one
_INSTALL = f"python -m pip install --no-build-isolation 'transformer-engine[pytorch]=={MEASURED}'"


def installed() -> str:
    """Return the version of Transformer Engine; empty if it is not installed."""
    return _version("transformer-engine")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _on_gpu() -> bool:
    """Return whether this machine trains on CUDA."""
    # Without importing a CPU build of torch: `megacode plan` asks this, and the import takes seconds.
    if _version("torch").endswith("+cpu"):
        return False
    from megacode.mcore import device

    return device.on_gpu()


def obstacle() -> str:
    """Return why Transformer Engine's layers cannot run here; empty if they can."""
    if not _on_gpu():
        return "Transformer Engine's layers need a GPU"
    version = installed()
    if not version:
        return "Transformer Engine is not installed"
    core = _version("megatron-core") or for_this_python()
    highest = _BELOW.get(parse(core)[:2], _BELOW[(0, 16)])
    if not OLDEST <= parse(version) < highest:
        oldest, below = ".".join(map(str, OLDEST)), ".".join(map(str, highest))
        return (
            f"Transformer Engine {version} is installed, but with megatron-core {core} megacode supports {oldest} up "
            f"to, not including, {below}"
        )
    # It comes as two packages. pip installs the first without the second if the extra `[pytorch]` is forgotten.
    missing = "Transformer Engine is installed without its PyTorch package, transformer-engine-torch"
    return "" if _version("transformer-engine-torch") else missing


def used(config: RunConfig) -> bool:
    """Return whether a run uses Transformer Engine's layers."""
    # `auto` depends on the machine, so a run may resume with other layers: names and shapes of weights are the same.
    choice, bf16 = config.precision.transformer_impl, config.precision.dtype == "bf16"
    return choice == "transformer_engine" or (choice == "auto" and bf16 and not obstacle())


def recipes() -> tuple[str, ...]:
    """Return the FP8 recipes that this machine can compute."""
    names = get_args(Fp8.model_fields["recipe"].annotation)
    refuses = _missing if _on_gpu() else _not_emulated
    return tuple(name for name in names if not refuses(Fp8(recipe=name)))


def problems(config: RunConfig) -> Iterator[Problem]:
    """Yield why a run's number formats or layers cannot be computed on this machine."""
    why = obstacle()
    if config.precision.transformer_impl == "transformer_engine" and why:
        fix = "use transformer_impl: auto" if not _on_gpu() else f"{_INSTALL}, or use transformer_impl: auto"
        yield Problem(why, "precision.transformer_impl", fix)
        return  # every other problem would follow from this one
    if used(config) and config.precision.dtype != "bf16":
        message = "Transformer Engine's attention does not support fp32"
        yield Problem(message, "precision.transformer_impl", "use transformer_impl: auto, or precision.dtype: bf16")
    if config.precision.reduced and _on_gpu() and why:
        message = f"{first_reduced(config.precision)} need Transformer Engine's Adam: {why}"
        yield Problem(message, f"precision.{config.precision.reduced[0]}", f"{_INSTALL}, or set it to fp32")
    for recipe in config.fp8_recipes:
        yield from _recipe_problems(config, recipe, why)


def _recipe_problems(config: RunConfig, recipe: Fp8, why: str) -> Iterator[Problem]:
    where = "precision.fp8"
    if _on_gpu() and not used(config):
        fix = f"{_INSTALL}, or set precision.fp8: none" if why else "set precision.dtype: bf16, or precision.fp8: none"
        yield Problem(why or "FP8 on a GPU needs Transformer Engine's layers and bf16", where, fix)
        return
    missing = _missing(recipe) if _on_gpu() else _not_emulated(recipe)
    if missing:
        fix = "use recipe tensorwise or delayed, or precision.fp8: none"
        yield Problem(f"recipe {recipe.recipe}: {missing}", f"{where}.recipe", fix)
    if recipe.param_gather and not _on_gpu():
        message = "param_gather needs Transformer Engine's layers, which need a GPU"
        yield Problem(message, f"{where}.param_gather", "set it to false")


def _missing(recipe: Fp8) -> str:
    """Return why this GPU cannot compute a recipe; empty if it can."""
    # Transformer Engine knows what each GPU can do, and gives the reason.
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
    return "it needs a Blackwell GPU and cannot be emulated" if recipe.recipe == "mxfp8" else ""

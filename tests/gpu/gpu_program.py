"""What runs on a GPU for tests/gpu: tiny models on Transformer Engine's layers and on ours, in bf16 and FP8."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from megacode.checkpoint import tensors
from megacode.config.training import Fp8
from megacode.mcore import fp8_probe, fp8_scales, groups, low_precision_adam, optimizer_state, precision
from megacode.mcore.build import build
from megacode.mcore.fp8_calibration import calibrate
from megacode.mcore.rank_model import RankModel
from megacode.mcore.step import StepResult, train_step

sys.path.insert(0, str(Path(__file__).parents[1] / "mcore"))
import decoders
import rank_program as tiny

SHAPE = {"hidden_size": 256, "ffn_hidden_size": 512}
MODELS: dict[str, dict[str, Any]] = {
    "sequential": {"model": {**SHAPE}},
    "sequential-layernorm": {"model": {**SHAPE, "normalization": "LayerNorm"}},
    "parallel": {"model": {**SHAPE, "block": "parallel", "normalization": "LayerNorm"}},
    "tied": {"model": {**SHAPE, "share_embeddings_and_output_weights": True}},
    "isolated": {"model": {**SHAPE}, "train": {"isolate_documents": True}},
    "recomputed": {"model": {**SHAPE}, "parallel": {"recompute": "full"}},
    "selective": {"model": {**SHAPE}, "parallel": {"recompute": "selective"}},
    "overlap": {"model": {**SHAPE}, "parallel": {"distributed_optimizer": True, "overlap_grad_reduce": True}},
    **{name: {**case, "model": {**SHAPE, **case["model"]}} for name, case in decoders.CASES.items()},
}
OPTIMIZERS: dict[str, dict[str, str]] = {
    "masters": {"masters": "bf16_remainder"},
    "moments": {"moments": "bf16"},
    "gradients": {"gradients": "bf16"},
    "all": {"moments": "bf16", "masters": "bf16_remainder", "gradients": "bf16"},
    "fp8": {"moments": "fp8_bf16", "masters": "bf16_remainder", "gradients": "bf16"},
}
RECIPES = ("delayed", "tensorwise", "blockwise")


def started(case: dict[str, Any], implementation: str, fp8: Fp8 | None = None) -> RankModel:
    """Return the parts of a run of a case on one GPU."""
    config = tiny.run_config(**{**case, "dtype": "bf16"})
    settings: dict[str, Any] = {"transformer_impl": implementation, "fp8": fp8 or "none"}
    config = config.model_copy(update={"precision": config.precision.model_copy(update=settings)})
    rank_model = build(config, groups.start(config.parallel, config.seed), tiny.VOCAB)
    precision.use(rank_model, fp8)
    return rank_model


def iterate(rank_model: RankModel, first: int, count: int) -> list[StepResult]:
    """Train some iterations on two batches in turn, which a tiny model soon knows by heart."""
    batches = [tiny.microbatches(rank_model, number) for number in range(2)]
    return [train_step(rank_model, batches[n % 2], 5e-4, tiny.SOURCES) for n in range(first, first + count)]


def losses(rank_model: RankModel, first: int, count: int) -> list[float]:
    """Train some iterations and return their losses."""
    return [step.loss for step in iterate(rank_model, first, count)]


def implementations() -> dict[str, Any]:
    """Train every model with both kinds of layers."""
    found: dict[str, Any] = {}
    for name, case in MODELS.items():
        found[name] = {}
        for implementation in ("local", "transformer_engine"):
            rank_model = started(case, implementation)
            steps = iterate(rank_model, 0, 10)
            found[name][implementation] = {key: [vars(step)[key] for step in steps] for key in ("loss", "grad_norm")}
    return found


def interchange() -> dict[str, Any]:
    """Save a run's state with one kind of layers, go on with the other, and compare with going on."""
    found = {}
    for name in ("sequential", "parallel", "after", "biased", "shared"):
        for saver, reader in (("local", "transformer_engine"), ("transformer_engine", "local")):
            rank_model = started(MODELS[name], saver)
            losses(rank_model, 0, 5)
            with tempfile.TemporaryDirectory() as directory:
                _save(rank_model, Path(directory))
                went_on = losses(rank_model, 5, 5)
                other = started(MODELS[name], reader)
                tensors.load(other, Path(directory))
                found[f"{name}: {saver} -> {reader}"] = [went_on, losses(other, 5, 5)]
    return found


def recipes() -> dict[str, Any]:
    """Train with every FP8 recipe this GPU knows, and without; by block and recipe."""
    found: dict[str, Any] = {}
    for name in ("parallel", "sequential"):
        found[name] = {"bf16": losses(started(MODELS[name], "transformer_engine"), 0, 10)}
        asked = {recipe: Fp8(recipe=recipe) for recipe in RECIPES}
        asked["ends in bf16"] = Fp8(recipe="tensorwise", num_layers_at_start_in_bf16=1, num_layers_at_end_in_bf16=1)
        asked["output layer"] = Fp8(recipe="delayed", output_layer=True)
        for title, recipe in asked.items():
            found[name][title] = losses(started(MODELS[name], "transformer_engine", recipe), 0, 10)
    recipe = Fp8(recipe="delayed")
    rank_model = started(MODELS["parallel"], "transformer_engine", recipe)
    switched = losses(rank_model, 0, 5)
    precision.use(rank_model, None)
    switched += losses(rank_model, 5, 3)
    precision.use(rank_model, recipe)
    found["parallel"]["delayed, bf16, delayed"] = switched + losses(rank_model, 8, 2)
    return found


def held() -> dict[str, Any]:
    """Train with matrices held in FP8 alone, and go on from a checkpoint of that with the other kind, and back."""
    found: dict[str, Any] = {}
    for name in ("parallel", "sequential"):
        case = {**MODELS[name], "parallel": {"distributed_optimizer": True}}
        for recipe in ("tensorwise", "delayed"):
            kept = Fp8(recipe=recipe, param_gather=True)
            _spoil_memory()
            rank_model = started(case, "transformer_engine", kept)
            first = losses(rank_model, 0, 6)
            with tempfile.TemporaryDirectory() as directory:
                _save(rank_model, Path(directory))
                went_on = losses(rank_model, 6, 4)
                again = started(case, "transformer_engine", kept)
                tensors.load(again, Path(directory))
                precision.use(again, kept)
                resumed = losses(again, 6, 4)
                local = started(case, "local")
                tensors.load(local, Path(directory))
                found[f"{name} {recipe}"] = {
                    "held": first + went_on,
                    "cast": losses(started(case, "transformer_engine", Fp8(recipe=recipe)), 0, 10),
                    "resumed": first + resumed,
                    "without FP8 from there": first + losses(local, 6, 4),
                }
    return found


def resumed() -> dict[str, Any]:
    """Go on from a checkpoint of a delayed-scaling run, with its scales and, as a control, without them."""
    fp8 = Fp8(recipe="delayed", amax_history_len=16)
    rank_model = started(MODELS["parallel"], "transformer_engine", fp8)
    losses(rank_model, 0, 8)
    with tempfile.TemporaryDirectory() as directory:
        _save(rank_model, Path(directory))
        found = {"uninterrupted": losses(rank_model, 8, 8)}
        for name in ("resumed", "without scales"):
            other = started(MODELS["parallel"], "transformer_engine", fp8)
            if name == "resumed":
                tensors.load(other, Path(directory))
            else:
                kept, fp8_scales.restore = fp8_scales.restore, lambda *unused: None
                tensors.load(other, Path(directory))
                fp8_scales.restore = kept
            precision.use(other, fp8)
            found[name] = losses(other, 8, 8)
    return found


def probed() -> dict[str, Any]:
    """Probe a run with FP8; return what was found, and whether the run went on as if nothing had happened."""
    found = {}
    for name in ("probed", "not probed"):
        fp8 = Fp8(recipe="delayed")
        rank_model = started(MODELS["parallel"], "transformer_engine", fp8)
        first = losses(rank_model, 0, 4)
        if name == "probed":
            found["comparison"] = vars(
                fp8_probe.compare(rank_model, tiny.microbatches(rank_model, 4)[0], tiny.SOURCES, fp8)
            )
        found[name] = first + losses(rank_model, 4, 4)
    return found


def first_scales() -> dict[str, Any]:
    """Return how far first gradients in FP8 are off, without first scales, with them, and with those of each tensor."""
    found: dict[str, Any] = {}
    for name, recipe in (("cold", "delayed"), ("calibrated", "delayed"), ("tensorwise", "tensorwise")):
        fp8 = Fp8(recipe=recipe)
        rank_model = started(MODELS["parallel"], "transformer_engine", fp8)
        microbatch = tiny.microbatches(rank_model, 0)[0]
        if name == "calibrated":
            calibrate(rank_model, microbatch, tiny.SOURCES)
        found[name] = fp8_probe.compare(rank_model, microbatch, tiny.SOURCES, fp8).gradients
    return found


def repeated() -> dict[str, Any]:
    """Train everything twice, with and without deterministic kernels."""
    found: dict[str, Any] = {}
    for wanted in (True, False):
        case = {**MODELS["parallel"], "train": {"deterministic": wanted}}
        for recipe in (None, Fp8(recipe="delayed")):
            once, again = (losses(started(case, "transformer_engine", recipe), 0, 10) for _ in range(2))
            found[f"deterministic {wanted}, {'FP8' if recipe else 'bf16'}"] = [once, again]
    return found


def rounding() -> float:
    """Return the largest difference between Transformer Engine's rounding to FP8 and the emulated one."""
    import transformer_engine_torch as tex
    from transformer_engine.pytorch.tensor.float8_tensor import Float8CurrentScalingQuantizer

    from megacode.mcore import fp8_emulation

    x = torch.randn(64, 128, device="cuda", dtype=torch.bfloat16)
    quantizer = Float8CurrentScalingQuantizer(tex.DType.kFloat8E4M3, device=torch.device("cuda"))
    theirs = quantizer(x).dequantize().float().cpu()
    ours = fp8_emulation.rounded(x.cpu(), fp8_emulation.E4M3, Fp8(recipe="tensorwise"), None, 0).float()
    return float((theirs - ours).abs().max() / ours.abs().max())


def smaller_optimizers() -> dict[str, Any]:
    """Train with optimizer states in less than fp32, by Transformer Engine's Adam and by ours in its place.

    Returns:
        By setting: losses of the `engine` and of `ours`; `apart`, the largest relative distance of a master or moment
        after the first iteration; and those of the engine after a save, `went_on` and `resumed`.
    """
    found = {}
    for name, changed in OPTIMIZERS.items():
        case = {**MODELS["sequential"], "parallel": {"distributed_optimizer": True}, "precision": changed}
        engine, ours = started(case, "local"), started(case, "local")
        for inner in ours.optimizer.chained_optimizers:
            low_precision_adam.put_into(inner, ours.config.precision)
        first = losses(engine, 0, 1), losses(ours, 0, 1)
        apart = max(_apart(a, b) for a, b in zip(_states(engine), _states(ours), strict=True))
        both = losses(engine, 1, 9), losses(ours, 1, 9)
        with tempfile.TemporaryDirectory() as directory:
            _save(engine, Path(directory))
            went_on, other = losses(engine, 10, 5), started(case, "local")
            tensors.load(other, Path(directory))
            resumed = losses(other, 10, 5)
        found[name] = {"engine": first[0] + both[0], "ours": first[1] + both[1], "apart": apart}
        found[name] |= {"went_on": went_on, "resumed": resumed}
    return found


def _states(rank_model: RankModel) -> list[torch.Tensor]:
    held = optimizer_state.held(rank_model.optimizer)
    tensors_ = [tensor for one in held for tensor in one.tensors.values()]
    return [tensor if isinstance(tensor, torch.Tensor) else tensor.joined() for tensor in tensors_]


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def everything() -> dict[str, Any]:
    """Return what each of the functions above returned, or how it failed."""
    found: dict[str, Any] = {}
    of_layers = (implementations, interchange, recipes, resumed, probed, first_scales, rounding, repeated, held)
    for function in (*of_layers, smaller_optimizers):
        try:
            found[function.__name__] = function()
        except Exception as error:
            import traceback

            found[function.__name__] = {"error": f"{type(error).__name__}: {error}\n{traceback.format_exc()[-3000:]}"}
    return found


def _spoil_memory() -> None:
    """Leave large numbers where the next tensors are made: what is built of them must not matter."""
    large = [torch.full((2**16,), 1e6, device="cuda") for _ in range(512)]
    del large


def _save(rank_model: RankModel, directory: Path) -> None:
    tensors.save(rank_model, directory)

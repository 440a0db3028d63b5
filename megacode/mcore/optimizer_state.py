"""A uniform view of the optimizer's state, in each of mcore's forms and in ours for Muon (`muon`, `owners`).

mcore's are plain fp32, with fp32 masters, or sharded. Each form keeps the same tensors in different places: the fp32
weight itself, and Adam's two moments or Muon's momentum. With states in less than fp32, moments may be bf16 or FP8
(`fp8_moments`), and the weight two tensors (`remainder`). With mcore's distributed optimizer a data-parallel rank holds
a run of elements that cuts through rows and parameters. Otherwise it holds all elements of its tensor-parallel slice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megacode.config.run import RunConfig
from megacode.config.training import OptimizerName
from megacode.mcore.fp8_moments import Fp8Moment, MomentValues
from megacode.mcore.low_precision_adam import MASTERS
from megacode.mcore.muon import MOMENTUM, MuonOptimizer
from megacode.mcore.optimizer import inner_optimizers, use
from megacode.mcore.remainder import SplitWeights

WEIGHT = "model"
MOMENTS = ("exp_avg", "exp_avg_sq")
STEPS, MATRIX_STEPS = "optimizer.steps", "optimizer.matrix_steps"


@dataclass(frozen=True)
class Held:
    """A run of one parameter's elements, as this rank's optimizer holds them.

    Attributes:
        parameter: this rank's slice of the parameter.
        start: number of the first element, in the slice's own order.
        sharded: True: no other data-parallel rank holds these elements. False: all of them do.
        main: the tensor that the optimizer updates; between `optimizer.measure` and the step its `grad` is set.
        tensors: `model`, the fp32 weights, whole or split, and the state by name, fp32, bf16 or FP8; flat, all of one
            length. AdamW keeps two moments of each parameter, Muon the momentum of each matrix.
    """

    parameter: Tensor
    start: int
    sharded: bool
    main: Tensor
    tensors: dict[str, Tensor | SplitWeights | MomentValues]


def held(optimizer: Any) -> Iterator[Held]:
    """Yield what this rank's optimizer holds; its state must exist (`prime`)."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    for inner in inner_optimizers(optimizer):
        if isinstance(inner, MuonOptimizer):
            yield from _owned(inner)
        else:
            yield from _sharded(inner) if isinstance(inner, DistributedOptimizer) else _whole(inner)


def _owned(inner: MuonOptimizer) -> Iterator[Held]:
    for owned in inner.owned:
        tensors = {WEIGHT: owned.main, **inner.state_of(owned)}
        flat = {name: tensor.view(-1) for name, tensor in tensors.items()}
        yield Held(owned.parameter, owned.start, inner.sharded, owned.main, flat)


def _sharded(inner: Any) -> Iterator[Held]:
    # mcore maps the model's parameter to (group, index) of the flat fp32 shard that Adam updates.
    for parameter, (group, number) in inner.model_param_group_index_map.items():
        main = inner.optimizer.param_groups[group]["params"][number]
        start = inner._get_model_param_range_map(parameter)["param"].start
        yield Held(parameter, start, True, main, _tensors(inner, main))


def _whole(inner: Any) -> Iterator[Held]:
    # bf16: Adam's parameters are fp32 masters of the model's. fp32: they are the model's, and `masters` stays empty.
    masters: dict[int, Tensor] = {}
    for models, mains in zip(
        getattr(inner, "float16_groups", ()), getattr(inner, "fp32_from_float16_groups", ()), strict=True
    ):
        masters |= {id(main): model for model, main in zip(models, mains, strict=True)}
    for group in inner.optimizer.param_groups:
        for main in group["params"]:
            yield Held(masters.get(id(main), main), 0, False, main, _tensors(inner, main))


def _tensors(inner: Any, main: Tensor) -> dict[str, Tensor | SplitWeights | MomentValues]:
    state = inner.optimizer.state[main]
    weights = main.detach()
    masters = state.get(MASTERS, weights)
    split = masters.dtype == torch.int16
    moments = {name: kept.values() if isinstance(kept := state[name], Fp8Moment) else kept for name in MOMENTS}
    tensors = {WEIGHT: SplitWeights(weights, masters) if split else masters, **moments}
    assert tensors[WEIGHT].dtype == torch.float32
    # Views, so that loading a checkpoint into them changes the optimizer.
    return {name: tensor.view(-1) for name, tensor in tensors.items()}


@torch.no_grad()
def prime(optimizer: Any) -> None:
    """Give each parameter without state the state that Adam would make in its first step."""
    for inner in inner_optimizers(optimizer):
        muon = isinstance(inner, MuonOptimizer)
        if not muon and inner.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8:
            # Not by mcore's function, which knows neither the types of these states nor that there are masters.
            for main in inner.get_parameters():
                if not inner.optimizer.state[main]:
                    inner.optimizer.initialize_state(main, inner.optimizer.store_param_remainders)
            continue
        inner.init_state_fn(inner.optimizer)
        if isinstance(inner.optimizer, torch.optim.AdamW):
            # mcore's init function makes the moments only; torch's fused kernel also expects a counter.
            for state in inner.optimizer.state.values():
                state.setdefault("step", torch.zeros((), device=state["exp_avg"].device))


def step_counts(optimizer: Any) -> dict[str, int]:
    """Return how many steps AdamW has done, by name; `MATRIX_STEPS` is there only if the matrices' number differs."""
    for inner in inner_optimizers(optimizer):
        if isinstance(inner, MuonOptimizer):
            steps, matrices = inner.steps(of_matrices=False) or 0, inner.steps(of_matrices=True)
            return {STEPS: steps} if matrices in (None, steps) else {STEPS: steps, MATRIX_STEPS: matrices}
        for group in inner.optimizer.param_groups:
            if not group["params"]:
                continue  # its counter may stand still
            if "step" in group:  # Transformer Engine's and apex's Adam count per group
                return {STEPS: int(group["step"])}
            for main in group["params"]:
                return {STEPS: int(inner.optimizer.state[main].get("step", 0))}
    return {STEPS: 0}


def set_step_counts(optimizer: Any, counts: Mapping[str, int]) -> None:
    """Set how many steps AdamW has done, from `step_counts`.

    torch's AdamW needs a counter per parameter: it advances each one it sees, so a shared one would run ahead.
    """
    for inner in inner_optimizers(optimizer):
        if isinstance(inner, MuonOptimizer):
            inner.set_steps(counts[STEPS], of_matrices=False)
            inner.set_steps(counts.get(MATRIX_STEPS, counts[STEPS]), of_matrices=True)
            continue
        for group in inner.optimizer.param_groups:
            if not isinstance(inner.optimizer, torch.optim.AdamW):
                group["step"] = counts[STEPS]
                continue
            for main in group["params"]:
                inner.optimizer.state[main]["step"].fill_(counts[STEPS])


def kind_of(names: Iterable[str]) -> OptimizerName:
    """Return the optimizer of the blocks' matrices, by the names of a checkpoint's tensors."""
    return "muon" if any(name.startswith(f"{MOMENTUM}.") for name in names) else "adamw"


def fit(config: RunConfig, optimizer: Any, names: Collection[str]) -> str:
    """Prepare an optimizer for the state of a checkpoint: its kind of state of the matrices.

    Args:
        config: of the run.
        optimizer: of `build_optimizer`.
        names: of the checkpoint's tensors.

    Returns:
        Why it cannot hold that state; empty if it can.
    """
    if isinstance(optimizer, MuonOptimizer):
        use(config, optimizer, kind_of(names))
        return ""
    if kind_of(names) == "muon":
        return "it holds Muon's state of the matrices, and no phase of the config trains with Muon"
    return "its matrices were trained with Muon before, and no phase of the config says so" * (MATRIX_STEPS in names)

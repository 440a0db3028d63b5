"""AdamW with states in less than fp32, for bf16 weights: what Transformer Engine's FusedAdam does, in torch.

On a GPU Megatron-core's precision-aware optimizer uses FusedAdam. It has no CPU version, so `LowPrecisionAdam` takes
its place there: the same states in the same formats, the same formulas in fp32, and each state rounded once, when it is
stored. A GPU fuses a multiplication and an addition, so its last bits may differ. Both keep, for each parameter, in
`state`:

    exp_avg, exp_avg_sq   the moments, fp32 or bf16; between steps the first may be FP8 (`fp8_moments`)
    master_param          the fp32 weights, or int16 remainders (`remainder`)

Source: Transformer Engine 2.11, `fused_adam.py` and `adam.cu`; Loshchilov and Hutter, Decoupled Weight Decay
Regularization (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megacode.capacity.optimizer import STEP_ELEMENTS
from megacode.config.training import Precision
from megacode.mcore.fp8_moments import keep_in_fp8
from megacode.mcore.remainder import join, split

# The types of both moments that the Adam itself is built with; `keep_in_fp8` stores the first one in less.
MOMENT_TYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp8_bf16": (torch.float32, torch.bfloat16),
}
MASTERS = "master_param"


class LowPrecisionAdam(torch.optim.Optimizer):
    """Adam for bf16 weights.

    Gradients are read from each parameter's `decoupled_grad`: torch allows `grad` only in the parameter's own type.

    Args:
        groups: parameter groups of an AdamW: `params`, bf16 and flat, `lr`, `betas`, `eps`, `weight_decay`.
        moments: types of the first and the second moment.
        store_param_remainders: keep only remainders in place of fp32 masters.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], moments: tuple[torch.dtype, torch.dtype], store_param_remainders: bool
    ) -> None:
        super().__init__(groups, {})
        self.moments, self.store_param_remainders = moments, store_param_remainders

    def initialize_state(self, param: Tensor, store_param_remainders: bool) -> None:
        """Give a parameter moments of zero, and masters equal to it."""
        state = self.state[param]
        for name, dtype in zip(("exp_avg", "exp_avg_sq"), self.moments, strict=True):
            state[name] = torch.zeros(param.shape, dtype=dtype, device=param.device)
        # The remainders of a bf16 weight are zero.
        zeros = torch.zeros(param.shape, dtype=torch.int16, device=param.device)
        state[MASTERS] = zeros if store_param_remainders else param.detach().float()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for param in group["params"]:
                if getattr(param, "decoupled_grad", None) is not None:
                    self._update(group, param, param.decoupled_grad.float())

    def _update(self, group: dict[str, Any], param: Tensor, gradient: Tensor) -> None:
        if not self.state[param]:
            self.initialize_state(param, self.store_param_remainders)
        state = self.state[param]
        master = state[MASTERS]
        whole = join(param, master) if self.store_param_remainders else master
        first, second, whole = _adam(group, gradient, state["exp_avg"].float(), state["exp_avg_sq"].float(), whole)
        state["exp_avg"].copy_(first)
        state["exp_avg_sq"].copy_(second)
        if self.store_param_remainders:
            high, low = split(whole)
            param.copy_(high)
            master.copy_(low)
        else:
            master.copy_(whole)
            param.copy_(whole)


def _adam(
    group: dict[str, Any], gradient: Tensor, first: Tensor, second: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return moments and weights after a step, all fp32, by the kernel's formulas."""
    # The kernel takes fp32 scalars; torch would compute 1 - beta in fp64 first.
    one = np.float32(1)
    beta1, beta2 = (np.float32(beta) for beta in group["betas"])
    correction1, correction2 = (float(np.float32(1.0 - float(beta) ** group["step"])) for beta in (beta1, beta2))
    first = float(beta1) * first + float(one - beta1) * gradient
    second = float(beta2) * second + float(one - beta2) * gradient * gradient
    update = (first / correction1) / ((second / correction2).sqrt() + group["eps"]) + group["weight_decay"] * weight
    return first, second, weight - group["lr"] * update


def put_into(inner: Any, precision: Precision) -> None:
    """Replace torch's AdamW inside mcore's distributed optimizer, which was built for an Adam with own masters.

    Args:
        inner: mcore's distributed optimizer, on a CPU.
        precision: of the run's config.
    """
    moments, remainders = MOMENT_TYPES[precision.moments], precision.masters == "bf16_remainder"
    inner.optimizer = LowPrecisionAdam(inner.optimizer.param_groups, moments, remainders)


def store_less(inner: Any, precision: Precision) -> None:
    """Let an Adam store moments as the config says, and need little memory for fp32 copies of them in a step.

    Args:
        inner: mcore's optimizer, with Transformer Engine's Adam or a `LowPrecisionAdam`, before its first step.
        precision: of the run's config.
    """
    if precision.moments == "fp8_bf16":
        keep_in_fp8(inner)
    if precision.moments != "fp32":
        step_in_slices(inner)


@torch.no_grad()
def round_masters(adam: Any) -> None:
    """Set the bf16 weights from fp32 masters that an Adam keeps, after these were loaded; remainders need nothing."""
    for param, state in adam.state.items():
        master = state.get(MASTERS)
        if master is not None and master.dtype == torch.float32:
            param.copy_(master)


def step_in_slices(inner: Any, elements: int = STEP_ELEMENTS) -> None:
    """Let an Adam update a few parameters at a time.

    Before a step, all moments of a group that are not fp32 are copied into fp32, except by Transformer Engine after
    2.12 if both are bf16. For an 8B model on one GPU that would be 64 GB for a moment. In slices it is 0.5 GB, or the
    largest parameter.

    Args:
        inner: mcore's optimizer.
        elements: largest size of a slice that has more than one parameter.
    """
    inner.optimizer.step = partial(_step_in_slices, inner.optimizer, inner.optimizer.step, elements)


def _step_in_slices(adam: Any, step: Callable[[], None], elements: int) -> None:
    groups = adam.param_groups
    for group in groups:
        counted = group.get("step", 0)
        for some in _slices(group["params"], elements):
            # Each call counts a step of the groups that it sees, so each sees a copy.
            adam.param_groups = [{**group, "params": some, "step": counted}]
            step()
        group["step"] = counted + 1
    adam.param_groups = groups


def _slices(params: list[Tensor], elements: int) -> Iterator[list[Tensor]]:
    some: list[Tensor] = []
    for param in params:
        if some and sum(one.numel() for one in some) + param.numel() > elements:
            yield some
            some = []
        some.append(param)
    if some:
        yield some

"""mcore's AdamW: replicated or sharded over data-parallel ranks, with fp32 masters if parameters are bf16.

Where a phase trains with Muon, an optimizer of ours stands in its place (`muon`), with the same interface. With states
in less than fp32, AdamW updates the bf16 weights themselves, and keeps what they lack (`low_precision_adam`). The
learning rate is a function of the clock, set before each step; mcore's scheduler is not used.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.distributed as dist

from megacode.config.run import RunConfig
from megacode.config.training import OptimizerName
from megacode.mcore import device, low_precision_adam, translate
from megacode.mcore.muon import MuonOptimizer


def build_optimizer(config: RunConfig, chunks: list[Any]) -> Any:
    """Return mcore's optimizer for the chunks of `build_model`, or a `MuonOptimizer`."""
    from megatron.core.optimizer import get_megatron_optimizer

    if config.uses_muon:
        muon = MuonOptimizer(config, chunks)
        configure(config, muon)
        return muon
    optimizer = get_megatron_optimizer(
        config=translate.optimizer_config(config),
        model_chunks=chunks,
        config_overrides=_exemptions(config.train.weight_decay_exempt),
        use_gloo_process_groups=False,
    )
    if config.precision.reduced:
        for inner in inner_optimizers(optimizer):
            if not device.on_gpu():
                low_precision_adam.put_into(inner, config.precision)
            if config.precision.moments != "fp32":
                low_precision_adam.step_in_slices(inner)
    configure(config, optimizer)
    if config.precision.dtype == "fp32":
        for inner in inner_optimizers(optimizer):
            # In fp32 Adam updates views of the parameters themselves; mcore would copy each onto itself.
            inner._copy_main_params_to_model_params = _nothing_to_copy
    return optimizer


def _nothing_to_copy() -> None:
    pass


def _exemptions(kinds: Collection[str]) -> dict[Any, Any]:
    """Return mcore's override that exempts parameters from weight decay.

    mcore calls the predicate with each parameter and its name. A tied output layer is the embedding. If the last
    pipeline stage holds a copy of it, mcore has marked the copy. An untied output layer does not count as an embedding.
    """
    from megatron.core.optimizer import ParamKey, ParamWithNamePredicate

    def exempt(weight: torch.Tensor, name: str) -> bool:
        embeds = name.endswith("embedding.word_embeddings.weight") or getattr(weight, "shared_embedding", False)
        return ("norms" in kinds and weight.dim() == 1) or ("embeddings" in kinds and embeds)

    return {ParamKey(with_name_predicate=ParamWithNamePredicate("exempt", exempt)): {"wd_mult": 0.0}}


def configure(config: RunConfig, optimizer: Any) -> None:
    """Set the config's values in each parameter group; also called after a load, which restores the saved ones.

    mcore keeps the exemption from weight decay as a factor, `wd_mult`, that only its own scheduler applies. Without
    that scheduler, which we do not use, every parameter would be decayed.
    """
    train = config.train
    for group in optimizer.param_groups:
        group["weight_decay"] = train.weight_decay * group["wd_mult"]
        group["betas"] = (train.adam_beta1, train.adam_beta2)
        group["eps"] = train.adam_eps
    for adam in adams(optimizer):
        for group in adam.param_groups:
            # torch's fused kernel: one pass over memory, several times faster than separate operations.
            group["fused"] = True


def use(config: RunConfig, optimizer: Any, kind: OptimizerName) -> bool:
    """Train the blocks' matrices with Muon or AdamW from now on; return whether that is new."""
    if not isinstance(optimizer, MuonOptimizer):
        assert kind == "adamw"
        return False
    changed = optimizer.use(kind)
    if changed:
        configure(config, optimizer)
    return changed


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the learning rate of the following steps."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def adams(optimizer: Any) -> Iterator[torch.optim.AdamW]:
    """Yield the torch AdamW objects inside an mcore optimizer; none if it uses Transformer Engine's or apex's Adam."""
    for inner in inner_optimizers(optimizer):
        if isinstance(inner.optimizer, torch.optim.AdamW):
            yield inner.optimizer


def inner_optimizers(optimizer: Any) -> list[Any]:
    """Return the optimizers inside a chained mcore optimizer, or the optimizer itself; empty ones are left out."""
    # A stub stands for a rank without parameters of some kind; it has no optimizer inside.
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [inner for inner in chained if not inner.is_stub_optimizer]


@torch.no_grad()
def measure(optimizer: Any, tokens: int) -> float:
    """Prepare the gradients for a step and return their global norm; nan if it is not finite.

    The norm is equal on all ranks, so all make the same decision whether to step.

    Args:
        optimizer: of `build_optimizer`.
        tokens: number of valid tokens; gradients of the sum over them become gradients of the mean.
    """
    # mcore's `step` prepares, clips and updates at once. In parts, a step can be rejected once its norm is known.
    prepare(optimizer, tokens)
    return gradient_norm(optimizer)


@torch.no_grad()
def prepare(optimizer: Any, tokens: int) -> None:
    """Prepare the gradients as `measure` does, without their norm."""
    optimizer.prepare_grads()
    _multiply(optimizer, 1.0 / max(tokens, 1))


@torch.no_grad()
def update(optimizer: Any, norm: float, clip_grad: float) -> None:
    """Clip the gradients prepared by `measure`, and update the parameters.

    Args:
        optimizer: of `build_optimizer`.
        norm: global norm of the gradients, finite.
        clip_grad: largest global norm; 0: no clipping.
    """
    factor = clip_grad / (norm + 1e-6)  # mcore's formula, so that results agree
    if 0.0 < factor < 1.0:
        _multiply(optimizer, factor)
    optimizer.step_with_ready_grads()


def _multiply(optimizer: Any, factor: float) -> None:
    """Multiply the prepared gradients that this rank's optimizer holds; if it is sharded, that is its share."""
    # One kernel over a list of tensors; a loop would launch one per tensor.
    held = (gradient_of(p) for inner in inner_optimizers(optimizer) for p in inner.get_parameters())
    gradients = [gradient for gradient in held if gradient is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def gradient_of(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return the prepared gradient of a tensor that the optimizer updates, fp32 or bf16; None if there is none."""
    # With states in less than fp32 the parameter is bf16, and torch allows no `grad` of another type.
    decoupled = getattr(parameter, "decoupled_grad", None)
    return parameter.grad if decoupled is None else decoupled


@torch.no_grad()
def restore_weights(chunks: list[Any], optimizer: Any) -> None:
    """Set the model's weights from the optimizer's fp32 ones, after a load; a collective of the data-parallel ranks.

    Each rank rounds what its optimizer holds and gathers the rest, so no rank reads the whole model.
    """
    for inner in inner_optimizers(optimizer):
        inner._copy_main_params_to_model_params()
        low_precision_adam.round_masters(inner.optimizer)
    for chunk in chunks:
        if chunk.ddp_config.use_distributed_optimizer:
            # Forced: with overlap the gather would only start here, and end in the next forward pass.
            chunk.start_param_sync(force_sync=True)


def gradient_norm(optimizer: Any) -> float:
    """Return the 2-norm of all gradients over all ranks; nan if it is not finite."""
    # mcore's own function copies to the host once per tensor where neither apex nor Transformer Engine is installed.
    # Its list leaves out copies of tied and replicated weights, which must count once.
    gradients = [gradient for inner in inner_optimizers(optimizer) for gradient in _counted_in_norm(inner)]
    square = torch.zeros((), device=device.device())
    if gradients:
        # In fp32 for bf16 gradients too: a norm in their own type has three digits.
        square = torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)).square().sum()
    group = optimizer.get_grad_stats_parallel_group()
    if group.size() > 1:
        dist.all_reduce(square, group=group)
    value = square.item()  # here the host waits for the GPU
    return math.sqrt(value) if math.isfinite(value) else float("nan")


def _counted_in_norm(inner: Any) -> list[torch.Tensor]:
    if hasattr(inner, "get_grads_for_grad_norm"):
        return list(inner.get_grads_for_grad_norm())
    return list(inner.get_main_grads_for_grad_norm())  # its name in mcore 0.16

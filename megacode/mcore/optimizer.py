"""mcore's AdamW: whole or sharded over data-parallel ranks, with fp32 masters if parameters are bf16.

The learning rate is a function of the clock and is set before each step; mcore's scheduler is not used.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.distributed as dist

from megacode.config.run import RunConfig
from megacode.mcore import device, translate


def build_optimizer(config: RunConfig, chunks: list[Any]) -> Any:
    """Return mcore's optimizer for the chunks of `build_model`."""
    from megatron.core.optimizer import get_megatron_optimizer

    optimizer = get_megatron_optimizer(
        config=translate.optimizer_config(config),
        model_chunks=chunks,
        config_overrides=_exemptions(config.train.weight_decay_exempt),
        use_gloo_process_groups=False,
    )
    configure(config, optimizer)
    if config.precision.dtype == "fp32":
        for inner in inner_optimizers(optimizer):
            # In fp32, Adam updates views of the parameters themselves: mcore would copy each onto itself.
            inner._copy_main_params_to_model_params = _nothing_to_copy
    return optimizer


def _nothing_to_copy() -> None:
    pass


def _exemptions(kinds: Collection[str]) -> dict[Any, Any]:
    """Return mcore's override that exempts some kinds of parameters from weight decay.

    mcore calls the predicate for each parameter and its name. A tied output layer is the embedding; a copy of it on the
    last pipeline stage is marked by mcore. An untied output layer is not an embedding.
    """
    from megatron.core.optimizer import ParamKey, ParamWithNamePredicate

    def exempt(weight: torch.Tensor, name: str) -> bool:
        embeds = name.endswith("embedding.word_embeddings.weight") or getattr(weight, "shared_embedding", False)
        return ("norms" in kinds and weight.dim() == 1) or ("embeddings" in kinds and embeds)

    return {ParamKey(with_name_predicate=ParamWithNamePredicate("exempt", exempt)): {"wd_mult": 0.0}}


def configure(config: RunConfig, optimizer: Any) -> None:
    """Set the config's values in each parameter group; also after a load, which restores the saved ones.

    mcore keeps the exemption from weight decay as a factor, `wd_mult`, which only its own scheduler would apply.
    """
    train = config.train
    for group in optimizer.param_groups:
        group["weight_decay"] = train.weight_decay * group["wd_mult"]
        group["betas"] = (train.adam_beta1, train.adam_beta2)
        group["eps"] = train.adam_eps
    for adam in adams(optimizer):
        for group in adam.param_groups:
            # torch's one-pass kernel, several times faster than separate operations.
            group["fused"] = True


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Set the learning rate of the following steps."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def adams(optimizer: Any) -> Iterator[torch.optim.AdamW]:
    """Yield torch's AdamW objects inside an mcore optimizer; none if Transformer Engine's or apex's Adam is used."""
    for inner in inner_optimizers(optimizer):
        if isinstance(inner.optimizer, torch.optim.AdamW):
            yield inner.optimizer


def inner_optimizers(optimizer: Any) -> list[Any]:
    """Return the non-empty mcore optimizers inside a chained one, or a single one itself."""
    # A rank may hold no parameters of a kind: mcore then puts a stub in its place.
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [inner for inner in chained if not inner.is_stub_optimizer]


@torch.no_grad()
def measure(optimizer: Any, tokens: int) -> float:
    """Prepare the gradients for a step and return their global norm; nan if it is not finite.

    The norm is equal on all ranks, so all make the same decision whether to step.

    Args:
        optimizer: of `build_optimizer`.
        tokens: number of tokens that the gradients are summed over; prepared gradients are of the mean.
    """
    optimizer.prepare_grads()
    # Only this rank's share is divided. mcore would divide all gradients, in one more pass over them.
    _multiply(optimizer, 1.0 / max(tokens, 1))
    return gradient_norm(optimizer)


@torch.no_grad()
def update(optimizer: Any, norm: float, clip_grad: float) -> None:
    """Clip the gradients that `measure` has prepared, and update the parameters.

    Args:
        optimizer: of `build_optimizer`.
        norm: global norm of the gradients, finite.
        clip_grad: largest global norm; 0: no clipping.
    """
    factor = clip_grad / (norm + 1e-6)  # as mcore and torch compute it
    if 0.0 < factor < 1.0:
        _multiply(optimizer, factor)
    optimizer.step_with_ready_grads()


def _multiply(optimizer: Any, factor: float) -> None:
    """Multiply the gradients that this rank's optimizer holds: only its share if it is sharded."""
    gradients = [p.grad for inner in inner_optimizers(optimizer) for p in inner.get_parameters() if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


@torch.no_grad()
def restore_weights(chunks: list[Any], optimizer: Any) -> None:
    """Compute the model's weights from the optimizer's fp32 ones, after a load; collective over data-parallel ranks.

    Each rank rounds the weights that its optimizer holds, and gathers the others. So no rank reads the whole model.
    """
    for inner in inner_optimizers(optimizer):
        inner._copy_main_params_to_model_params()
    for chunk in chunks:
        if chunk.ddp_config.use_distributed_optimizer:
            chunk.start_param_sync(force_sync=True)


def gradient_norm(optimizer: Any) -> float:
    """Return the 2-norm of all gradients over all ranks; mcore's own makes one device-to-host copy per tensor."""
    gradients = [gradient for inner in inner_optimizers(optimizer) for gradient in inner.get_main_grads_for_grad_norm()]
    square = torch.zeros((), device=device.device())
    if gradients:
        square = torch.stack(torch._foreach_norm(gradients)).square().sum()
    # Ranks that hold copies of a parameter contribute it once: mcore's list above leaves the others out.
    group = optimizer.get_grad_stats_parallel_group()
    if group.size() > 1:
        dist.all_reduce(square, group=group)
    value = square.item()
    return math.sqrt(value) if math.isfinite(value) else float("nan")

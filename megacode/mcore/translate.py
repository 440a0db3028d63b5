"""Our settings in Megatron-core's words: one table for the model, one for its data-parallel wrap, one for Adam.

Every value that mcore would otherwise choose by a default that is wrong here stands in these tables too, with the
reason. Nothing else in megacode fills mcore's config classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812

from megacode.capacity.costs import padded_vocabulary
from megacode.config.run import RunConfig
from megacode.config.training import Fp8
from megacode.mcore import device

if TYPE_CHECKING:
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import TransformerConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def padded_vocab_size(config: RunConfig, vocab_size: int) -> int:
    """Return the rows of the embedding: a multiple of `make_vocab_size_divisible_by` x the tensor-parallel size.

    The rows beyond `vocab_size` belong to no token: they start as zeros and take no part in the loss.
    """
    return padded_vocabulary(config.model, vocab_size, config.parallel.tensor)


def transformer_config(config: RunConfig) -> TransformerConfig:
    """Return mcore's description of the model and its layout."""
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        **_model(config), **_layout(config), **_recomputation(config), **_numbers(config), **_held_in_fp8(config)
    )


def _model(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.query_groups,
        "kv_channels": model.head_size,
        "normalization": model.normalization,
        "layernorm_epsilon": model.layernorm_epsilon,
        "hidden_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        # weights.initialize fills them, alike in every layout, which mcore's own way does not. `perform_initialization`
        # must stay on even so: it also marks which parameters are slices, without which the gradient norm is wrong.
        "init_method": leave_as_is,
        "output_layer_init_method": leave_as_is,
        "embedding_init_method": leave_as_is,
    }


def leave_as_is(weight: torch.Tensor) -> torch.Tensor:
    """Stand in for an initialisation: the weights are filled later."""
    return weight


def _layout(config: RunConfig) -> dict[str, Any]:
    parallel = config.parallel
    interleaved = parallel.virtual_pipeline is not None
    return {
        "tensor_model_parallel_size": parallel.tensor,
        "pipeline_model_parallel_size": parallel.pipeline,
        "virtual_pipeline_model_parallel_size": parallel.virtual_pipeline,
        "context_parallel_size": parallel.context,
        "sequence_parallel": parallel.sequence_parallel,
        # Batched send and receive pairs up wrongly where the next and the previous pipeline rank are one and the same
        # (two ranks, interleaved): the run goes on and learns from other micro-batches' activations.
        "batch_p2p_comm": not interleaved,
        # gloo reads a tensor after the call that sends it has returned, when its memory was given back already: with
        # overlap the gradients are silently wrong. NCCL orders both on a stream.
        "overlap_p2p_comm": interleaved and device.on_gpu(),
        # A stage's output is only needed for its graph once it was sent: its memory is given back.
        "deallocate_pipeline_outputs": True,
    }


def _recomputation(config: RunConfig) -> dict[str, Any]:
    """Return which activations are recomputed: mcore does whole blocks, our attention does its own part."""
    if config.parallel.recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if config.parallel.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}


def _numbers(config: RunConfig) -> dict[str, Any]:
    dtype = DTYPES[config.precision.dtype]
    return {
        "bf16": config.precision.dtype == "bf16",
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        # Gradients are those of the sum of the tokens' losses, divided once by the global batch's number of valid
        # tokens: the mean is right however padding and masks spread over ranks and micro-batches.
        "calculate_per_token_loss": True,
        # mcore's fused cross entropy rounds the gradient of the logits to bf16, even in fp32 training.
        "cross_entropy_loss_fusion": False,
    }


def _held_in_fp8(config: RunConfig) -> dict[str, Any]:
    """Return the recipe that matrices are built in; where they stay in `dtype`, recipes come and go with the phases."""
    recipe = fp8_parameters(config)
    return {} if recipe is None else mcore_recipe(recipe)


def fp8_parameters(config: RunConfig) -> Fp8 | None:
    """Return the recipe in whose format the blocks' matrices are held, or None."""
    return next((recipe for recipe in config.fp8_recipes if recipe.param_gather), None)


def mcore_recipe(recipe: Fp8 | None) -> dict[str, Any]:
    """Return an FP8 recipe in mcore's words."""
    if recipe is None:
        return {"fp8": None}
    ends = (recipe.num_layers_at_start_in_bf16, recipe.num_layers_at_end_in_bf16)
    return {
        "fp8": recipe.format,
        "fp8_recipe": recipe.recipe,
        "fp8_amax_history_len": recipe.amax_history_len,
        # mcore's default, the latest maximum alone, overflows as soon as a tensor grows.
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": any(ends),
        "num_layers_at_start_in_bf16": ends[0],
        "num_layers_at_end_in_bf16": ends[1],
        "fp8_param": recipe.param_gather,
    }


def ddp_config(config: RunConfig) -> DistributedDataParallelConfig:
    """Return mcore's description of how gradients are gathered and reduced."""
    from megatron.core.distributed import DistributedDataParallelConfig

    recipe = fp8_parameters(config)
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce and not _alone(),
        overlap_param_gather=config.parallel.overlap_param_gather and not _alone(),
        fp8_param_gather=recipe is not None,
        reuse_grad_buf_for_mxfp8_param_ag=recipe is not None and recipe.recipe == "mxfp8",
        use_distributed_optimizer=config.parallel.distributed_optimizer,
        # It would raise on a non-finite gradient; train_step skips such an iteration and reports it.
        check_for_nan_in_grad=False,
    )


def _alone() -> bool:
    """Whether there is no other rank, and so nothing that could be overlapped."""
    return torch.distributed.get_world_size() == 1


def optimizer_config(config: RunConfig) -> OptimizerConfig:
    """Return mcore's description of AdamW; the learning rate here is a placeholder, set before each iteration."""
    from megatron.core.optimizer import OptimizerConfig

    train, recipe = config.train, fp8_parameters(config)
    return OptimizerConfig(
        optimizer="adam",
        lr=0.0,
        # mcore's schedulers compare with it and fail on None.
        min_lr=0.0,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_eps=train.adam_eps,
        clip_grad=train.clip_grad,
        bf16=config.precision.dtype == "bf16",
        params_dtype=DTYPES[config.precision.dtype],
        use_distributed_optimizer=config.parallel.distributed_optimizer,
        overlap_param_gather=config.parallel.overlap_param_gather and not _alone(),
        fp8_recipe=None if recipe is None else recipe.recipe,
        reuse_grad_buf_for_mxfp8_param_ag=recipe is not None and recipe.recipe == "mxfp8",
    )

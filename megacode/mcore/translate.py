"""Translate our config into Megatron-core's: one table for the model, one for its data-parallel wrapper, one for Adam.

Where a default of mcore's is wrong for us, the tables override it and say why. Nothing else in megacode fills mcore's
config classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812

from megacode.capacity.costs import padded_vocabulary
from megacode.config.model import ModelConfig
from megacode.config.run import RunConfig
from megacode.config.training import Fp8, Precision
from megacode.mcore import device
from megacode.mcore.low_precision_adam import MOMENT_TYPES

if TYPE_CHECKING:
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import TransformerConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def padded_vocab_size(config: RunConfig, vocab_size: int) -> int:
    """Return the rows of the embedding: a multiple of `make_vocab_size_divisible_by` x the tensor-parallel size.

    The rows after `vocab_size` belong to no token: they start as zeros and have no part in the loss.
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
        **_windows(model),
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
        "add_qkv_bias": model.qkv_bias,
        # `weights.initialize` fills them, equally in every layout; mcore's initialization depends on the layout.
        # `perform_initialization` must stay on: it also marks which parameters are slices. Without these marks the
        # gradient norm is wrong.
        "init_method": leave_as_is,
        "output_layer_init_method": leave_as_is,
        "embedding_init_method": leave_as_is,
    }


def _windows(model: ModelConfig) -> dict[str, Any]:
    """Return the sliding windows for Transformer Engine's attention; ours reads our own config."""
    if model.sliding_window is None:
        return {}
    sliding = [int(model.window(layer) is not None) for layer in range(model.num_layers)]
    # Keys before and after a token's own, which Transformer Engine does not count.
    return {"window_size": (model.sliding_window - 1, 0), "window_attn_skip_freq": sliding}


def leave_as_is(weight: torch.Tensor) -> torch.Tensor:
    """Do not initialize: the weights are filled later."""
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
        # With two interleaved ranks the next and the previous pipeline rank are the same. Batched sends and receives
        # are then matched wrongly: the run continues, and learns from activations of other micro-batches.
        "batch_p2p_comm": not interleaved,
        # gloo still reads a tensor after the call that sends it has returned, when its memory may be freed already.
        # With overlap, gradients are then silently wrong. NCCL orders both on a stream.
        "overlap_p2p_comm": interleaved and device.on_gpu(),
        # Once a stage's output is sent, only its autograd graph is needed: its memory is freed.
        "deallocate_pipeline_outputs": True,
    }


def _recomputation(config: RunConfig) -> dict[str, Any]:
    """Return which activations are recomputed: mcore recomputes whole blocks, our attention its own part."""
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
        # Of activations sent between stages. mcore's default is None, which it rejects with more than one stage.
        "pipeline_dtype": dtype,
        # Gradients are those of the sum of token losses, divided once by the number of valid tokens in the global
        # batch. The mean is then right, however padding and masks are distributed over ranks and micro-batches.
        "calculate_per_token_loss": True,
        # mcore's fused cross entropy rounds the gradient of the logits to bf16, even in fp32 training.
        "cross_entropy_loss_fusion": False,
    }


def _held_in_fp8(config: RunConfig) -> dict[str, Any]:
    """Return the recipe that matrices are built with; if they stay in `dtype`, phases switch recipes later."""
    recipe = fp8_parameters(config)
    return {} if recipe is None else mcore_recipe(recipe)


def fp8_parameters(config: RunConfig) -> Fp8 | None:
    """Return the recipe in whose format the blocks' matrices are stored, or None."""
    return next((recipe for recipe in config.fp8_recipes if recipe.param_gather), None)


def mcore_recipe(recipe: Fp8 | None) -> dict[str, Any]:
    """Return an FP8 recipe as values of mcore's config; None: no FP8."""
    if recipe is None:
        return {"fp8": None}
    ends = (recipe.num_layers_at_start_in_bf16, recipe.num_layers_at_end_in_bf16)
    return {
        "fp8": recipe.format,
        "fp8_recipe": recipe.recipe,
        "fp8_amax_history_len": recipe.amax_history_len,
        # mcore's default takes the most recent maximum alone, and overflows as soon as a tensor grows.
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": any(ends),
        "num_layers_at_start_in_bf16": ends[0],
        "num_layers_at_end_in_bf16": ends[1],
        "fp8_param": recipe.param_gather,
    }


def ddp_config(config: RunConfig) -> DistributedDataParallelConfig:
    """Return mcore's config of how gradients are accumulated and reduced."""
    from megatron.core.distributed import DistributedDataParallelConfig

    recipe, wide = fp8_parameters(config), config.precision.gradients == "fp32"
    return DistributedDataParallelConfig(
        # Costs 4 bytes per parameter instead of 2. In bf16, sums over many micro-batches lose small gradients.
        grad_reduce_in_fp32=wide,
        # Ranks exchange bf16 parts, and each adds those of its share in fp32. NCCL would round after each addition.
        reduce_scatter_with_fp32_accumulation=not wide and not _alone(),
        overlap_grad_reduce=config.parallel.overlap_grad_reduce and not _alone(),
        overlap_param_gather=config.parallel.overlap_param_gather and not _alone(),
        fp8_param_gather=recipe is not None,
        reuse_grad_buf_for_mxfp8_param_ag=recipe is not None and recipe.recipe == "mxfp8",
        use_distributed_optimizer=config.shards_as_mcore,
        # The check would raise on a non-finite gradient; `train_step` skips such an iteration and reports it.
        check_for_nan_in_grad=False,
    )


def _alone() -> bool:
    """Return whether this is the only rank, so that there is no communication to overlap."""
    return torch.distributed.get_world_size() == 1


def optimizer_config(config: RunConfig) -> OptimizerConfig:
    """Return mcore's config of AdamW; the learning rate here is a placeholder, since every iteration sets it."""
    from megatron.core.optimizer import OptimizerConfig

    train, recipe = config.train, fp8_parameters(config)
    settings = OptimizerConfig(
        optimizer="adam",
        lr=0.0,
        # mcore compares it with numbers, and fails on its own default of None.
        min_lr=0.0,
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_eps=train.adam_eps,
        clip_grad=train.clip_grad,
        bf16=config.precision.dtype == "bf16",
        params_dtype=DTYPES[config.precision.dtype],
        use_distributed_optimizer=config.shards_as_mcore,
        overlap_param_gather=config.parallel.overlap_param_gather and not _alone(),
        fp8_recipe=None if recipe is None else recipe.recipe,
        reuse_grad_buf_for_mxfp8_param_ag=recipe is not None and recipe.recipe == "mxfp8",
        **_reduced_states(config.precision),
    )
    if config.precision.reduced:
        # mcore derives it on GPUs, and refuses without FusedAdam, which `low_precision_adam` replaces on CPUs.
        settings.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
    return settings


def _reduced_states(precision: Precision) -> dict[str, Any]:
    """Return the settings of Transformer Engine's Adam with states in less than fp32; empty on a CPU."""
    if not precision.reduced or not device.on_gpu():
        return {}
    first, second = MOMENT_TYPES[precision.moments]
    return {
        "use_precision_aware_optimizer": True,
        "store_param_remainders": precision.masters == "bf16_remainder",
        "main_grads_dtype": DTYPES[precision.gradients],
        "exp_avg_dtype": first,
        "exp_avg_sq_dtype": second,
    }

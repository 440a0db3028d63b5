"""Megatron-core as upstream's training script sets it up: its GPT model, its Transformer Engine layers, its fusions.

The block is the sequential one, since upstream has no other; it costs the same operations. Gradients are accumulated in
the matrix products of Transformer Engine's layers, as upstream's default asks; for its output layer that takes apex.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from gpu.measure import SEQ_LENGTH, shape
from megacode.config.training import Parallel
from megacode.mcore import groups


def build(preset: str, micro: int, name: str) -> Any:
    """Return a function that trains one step and returns its loss."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.module import Float16Module

    groups.start(Parallel(), 1234)
    model, vocabulary = shape(preset)
    config = _config(model, name.removeprefix("megatron-"))
    gpt = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_with_transformer_engine_spec(),
        vocab_size=vocabulary,
        max_sequence_length=SEQ_LENGTH,
        share_embeddings_and_output_weights=True,
        position_embedding_type="rope",
    ).cuda()
    # Set on the modules, since the config's own switch wants apex for the output layer.
    for module in gpt.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    chunk = DistributedDataParallel(config, ddp, Float16Module(config, gpt))
    config.finalize_model_grads_func = finalize_model_grads
    settings = OptimizerConfig(
        optimizer="adam", lr=1e-5, min_lr=0.0, weight_decay=0.1, adam_beta2=0.95, clip_grad=1.0, bf16=True,
        params_dtype=torch.bfloat16, use_distributed_optimizer=True,
    )  # fmt: skip
    optimizer = get_megatron_optimizer(settings, [chunk], use_gloo_process_groups=False)
    positions = torch.arange(SEQ_LENGTH, device="cuda").repeat(micro, 1)

    def forward(iterator: Any, part: Any) -> Any:
        batch = next(iterator).cuda(non_blocking=True)
        losses = part(batch[:, :-1], positions, None, labels=batch[:, 1:])
        return losses, _loss

    def step(batches: list[torch.Tensor]) -> float:
        chunk.zero_grad_buffer()
        optimizer.zero_grad()
        entries = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(batches),
            model=chunk,
            num_microbatches=len(batches),
            seq_length=SEQ_LENGTH,
            micro_batch_size=micro,
            forward_only=False,
        )
        optimizer.step()
        # The one wait for the GPU in a step, as in the other loops.
        return float(torch.stack([entry["loss"] for entry in entries]).mean())

    return step


def _loss(losses: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    mean = losses.float().mean()
    return mean, {"loss": mean.detach().clone()}  # the schedule divides it in place


def _config(model: Any, fp8: str) -> Any:
    from megatron.core.transformer import TransformerConfig

    recipes = {} if fp8 == "bf16" else {"fp8": "hybrid", "fp8_recipe": fp8, "fp8_amax_history_len": 1024}
    if fp8 == "delayed":
        recipes["fp8_amax_compute_algo"] = "max"
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_size,
        normalization=model.normalization,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=True,
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        bias_activation_fusion=True,
        bias_dropout_fusion=True,
        apply_rope_fusion=True,
        cross_entropy_loss_fusion=True,
        cross_entropy_fusion_impl="te",
        init_method=partial(torch.nn.init.normal_, std=0.02),
        **recipes,
    )

"""Build the model: mcore's GPTModel with our blocks, rotary positions and loss, wrapped for bf16 and data parallel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from megacode.config.run import RunConfig
from megacode.mcore import device, gradients, layout_check, te, translate, weights
from megacode.mcore.kernels import CrossEntropy
from megacode.mcore.layers import Embedding, OutputLayer, block_spec
from megacode.mcore.losses import SlicedCrossEntropy
from megacode.mcore.rotary import RotaryTable
from megacode.mcore.sharding import model_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules


class Model(GPTModel):
    """mcore's GPTModel, or one pipeline chunk of it.

    Args:
        config: the run's config.
        mcore_config: mcore's translation of it.
        vocab_size: tokens in the vocabulary; the embedding has `translate.padded_vocab_size` rows.
        vp_stage: number of this rank's chunk, with interleaved pipelines; else None.
    """

    def __init__(
        self, config: RunConfig, mcore_config: TransformerConfig, vocab_size: int, vp_stage: int | None
    ) -> None:
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        super().__init__(
            config=mcore_config,
            transformer_layer_spec=_spec(config)(config.model, mcore_config, vp_stage),
            vocab_size=translate.padded_vocab_size(config, vocab_size),
            max_sequence_length=config.train.seq_length,
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=config.model.share_embeddings_and_output_weights,
            position_embedding_type="rope",
            vp_stage=vp_stage,
        )
        self.tokens = vocab_size
        self.z_loss = config.train.z_loss
        self.engine = te.used(config)
        # mcore's spec does not cover these two. Ours are subclasses without state, so changing the class is enough.
        if first:
            self.embedding.word_embeddings.__class__ = Embedding
        if last:
            self.output_layer.__class__ = _output_layer(config)
            self.output_layer.logit_scale = config.model.logit_scale
        # The Triton kernel rotates in fp32. Our other attention rotates in the activations' dtype.
        wide = self.engine and config.parallel.context == 1
        self.rotary_pos_emb = RotaryTable(
            config.model,
            torch.float32 if wide else translate.DTYPES[config.precision.dtype],
            self.pg_collection.cp,
        )

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return each token's loss, [b, s] fp32; with a z-loss [2, b, s], losses and z-losses.

        Args:
            labels: [b, s] int64; with Transformer Engine's layers `IGNORED` where a token does not count.
            logits: [s, b, padded vocabulary / tensor-parallel size], overwritten.
        """
        # Padding columns get -inf, so they have no part in the softmax. The loss then depends neither on the padding
        # nor on the layout, and equals that of the exported model. Usually only the last rank has such columns.
        slice_size = logits.size(-1)
        own = self.tokens - slice_size * self.pg_collection.tp.rank()
        if own < slice_size:
            logits.detach()[..., max(own, 0) :] = float("-inf")
        labels = labels.t().contiguous()
        # Several losses, one result: fused on a GPU, over slices of the vocabulary (mcore's, which has no z-loss, or
        # ours), and ours in place.
        if self.engine:
            from megacode.mcore.te_kernels import CrossEntropy as EngineCrossEntropy

            losses = EngineCrossEntropy.apply(logits, labels, self.pg_collection.tp, self.z_loss)
        elif self.pg_collection.tp.size() > 1 and self.z_loss:
            losses = SlicedCrossEntropy.apply(logits, labels, self.pg_collection.tp, self.z_loss)
        elif self.pg_collection.tp.size() > 1:
            losses = vocab_parallel_cross_entropy(logits, labels)
        else:
            flat = CrossEntropy.apply(logits.flatten(0, 1), labels.flatten(), self.z_loss)
            losses = flat.unflatten(-1, labels.shape)
        return losses.transpose(-1, -2)


def _output_layer(config: RunConfig) -> type[OutputLayer]:
    if not te.used(config):
        return OutputLayer
    from megacode.mcore.te_layers import EngineOutputLayer

    return EngineOutputLayer


def _spec(config: RunConfig) -> Callable[..., TransformerBlockSubmodules]:
    """Return the function that specifies the blocks: Transformer Engine's or ours."""
    if not te.used(config):
        return block_spec
    # Imported late: Transformer Engine need not be installed.
    from megacode.mcore.te_layers import block_spec as engine_spec

    return engine_spec


def build_model(config: RunConfig, vocab_size: int) -> list[Any]:
    """Build this rank's part of the model, with its initial weights.

    Args:
        config: the run's config.
        vocab_size: tokens in the vocabulary, without padding.

    Returns:
        One DistributedDataParallel for each chunk that this pipeline rank holds.

    Raises:
        ConfigError: the config asks for something this machine cannot compute.
    """
    layout_check.check_model(config)
    device.make_deterministic(config.train.deterministic)
    mcore_config = translate.transformer_config(config)
    stages = range(config.parallel.virtual_pipeline) if config.parallel.virtual_pipeline else (None,)
    models = [Model(config, mcore_config, vocab_size, stage).to(device.device()) for stage in stages]
    # mcore then sums the gradients of `q_layernorm` and `k_layernorm` over tensor-parallel ranks, which have different
    # heads. Only now: while it builds, mcore 0.19 would take this as a wish for norms of its own.
    mcore_config.qk_layernorm = config.model.qk_norm == "shared"
    # Before the wrap: with the distributed optimizer it moves the parameters into its own buffers.
    weights.initialize(config, vocab_size, list(model_state(models).values()))
    return _wrapped(config, mcore_config, models)


def _wrapped(config: RunConfig, mcore_config: TransformerConfig, models: list[Model]) -> list[Any]:
    ddp_config = translate.ddp_config(config)
    inner = [Float16Module(mcore_config, model) for model in models] if mcore_config.bf16 else models
    chunks = [
        # Later chunks of an interleaved pipeline are not on the critical path, so they get one bucket each.
        DistributedDataParallel(mcore_config, ddp_config, model, disable_bucketing=index > 0)
        for index, model in enumerate(inner)
    ]
    gradients.prepare(chunks)
    return chunks

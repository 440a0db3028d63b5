"""The sections `train`, `parallel`, `precision`, `checkpoint` and `init`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from megacode.config.quantity import Count, Frozen, Length


class BatchRamp(Frozen):
    """A global batch that grows with the clock, as Megatron's `--rampup-batch-size`.

    Attributes:
        start: sequences in the first batch.
        increment: sequences added at each of the equal steps up to `global_batch_size`.
        samples: clock, in samples, at which the full batch is reached.
    """

    start: int = Field(ge=1)
    increment: int = Field(ge=1)
    samples: Count = Field(ge=1)


OptimizerName = Literal["adamw", "muon"]


class Muon(Frozen):
    """Muon for the matrices of the blocks; embeddings, output layer and vectors are trained by AdamW.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024); `moonlight`: Liu et al., Muon
    is Scalable for LLM Training (2025), section 2.2.

    Attributes:
        momentum: of the running mean of gradients.
        nesterov: mix the present gradient into the momentum once more.
        newton_schulz_steps: iterations that make an update orthogonal.
        newton_schulz_dtype: of their products; bf16 is several times as fast on a GPU, and rounds.
        scale: factor of the learning rate, by a matrix's rows and columns: 0.2 sqrt(max(rows, columns)), with which an
            update is as large as AdamW's (`moonlight`), or sqrt(max(1, rows / columns)) (`spectral`).
        scale_factor: a further factor. With `spectral`, Muon needs a much larger learning rate than AdamW.
    """

    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    newton_schulz_steps: int = Field(default=5, ge=1, le=20)
    # fp32 by default: then the losses of all layouts agree as closely as AdamW's.
    newton_schulz_dtype: Literal["fp32", "bf16"] = "fp32"
    # By default the learning rate and weight decay of an AdamW recipe can be kept.
    scale: Literal["moonlight", "spectral"] = "moonlight"
    scale_factor: float = Field(default=1.0, gt=0)


class Training(Frozen):
    """Batches and optimizer.

    Attributes:
        seq_length: tokens per sequence (a sample reads one more, for the last label).
        global_batch_size: sequences per iteration, over all ranks.
        micro_batch_size: sequences in one forward and backward pass of a rank.
        batch_ramp: a smaller batch at the start.
        optimizer: `adamw`, or `muon` for the matrices of the blocks and AdamW for all else; a phase may override it.
        muon: its settings.
        weight_decay: decoupled, of both optimizers.
        adam_beta1, adam_beta2, adam_eps: AdamW.
        weight_decay_exempt: kinds of parameters without weight decay; `norms` includes biases.
        clip_grad: the global gradient norm is clipped to this; 0: no clipping.
        z_loss: factor of the z-loss, mean(log(Z)^2) over the valid tokens, where Z is the sum of the softmax over the
            vocabulary (Chowdhery et al., PaLM, 2022, section 5). It is trained on, and is not part of the reported
            losses; 0: none.
        isolate_documents: attention and positions never cross a document's border.
        loader: which code builds the micro-batches, megacode's own or NVIDIA's DALI; the batches are identical.
        prefetch: iterations whose micro-batches are prepared in advance, on the GPU where there is one; 0: none.
        deterministic: bit-identical runs on GPUs too, where it makes the backward pass of attention slower. CPU runs
            always are.
    """

    seq_length: Count = Field(ge=2)
    global_batch_size: Count = Field(ge=1)
    micro_batch_size: int = Field(default=1, ge=1)
    batch_ramp: BatchRamp | None = None
    optimizer: OptimizerName = "adamw"
    muon: Muon = Muon()
    weight_decay: float = Field(default=0.1, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    # 0.95 as in most recipes of large models; PyTorch's default is 0.999.
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0)
    # Embeddings are decayed unless listed, as Megatron does.
    weight_decay_exempt: tuple[Literal["norms", "embeddings"], ...] = ("norms",)
    clip_grad: float = Field(default=1.0, ge=0)
    z_loss: float = Field(default=0.0, ge=0)
    # Off as in most pre-training runs: one causal mask over the whole sequence is faster.
    isolate_documents: bool = False
    loader: Literal["default", "dali"] = "default"
    # One iteration ahead removes most of the wait: 0.21 ms instead of 0.88 on two cores.
    prefetch: int = Field(default=1, ge=0)
    deterministic: bool = False


class Parallel(Frozen):
    """How the model is split over ranks; the remaining factor is data parallel.

    Attributes:
        tensor, pipeline, context: parallel sizes.
        virtual_pipeline: model chunks a pipeline rank holds (interleaved schedule); absent: one.
        sequence_parallel: split norms and dropout along the sequence over the tensor-parallel ranks.
        distributed_optimizer: shard optimizer state over the data-parallel ranks.
        overlap_grad_reduce, overlap_param_gather: hide those collectives behind compute.
        recompute: activations recomputed in the backward pass to save memory: `none`, those of attention
            (`selective`), or all but the input of each block (`full`).
    """

    tensor: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)
    virtual_pipeline: int | None = Field(default=None, ge=2)
    context: int = Field(default=1, ge=1)
    sequence_parallel: bool = False
    # Sharded by default: with many data-parallel ranks, each saves most of its optimizer state.
    distributed_optimizer: bool = True
    # Both overlaps are off unless asked for, as in Megatron.
    overlap_grad_reduce: bool = False
    overlap_param_gather: bool = False
    recompute: Literal["none", "selective", "full"] = "none"

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.pipeline * self.context


class Fp8(Frozen):
    """FP8 matrix products in the transformer blocks; embedding, norms and attention keep `dtype`.

    Attributes:
        recipe: how scales are computed: from a history of maxima (`delayed`), from the current tensor (`tensorwise`),
            from each block of 128 values (`blockwise`) or of 32 values (`mxfp8`, Blackwell and later).
        format: `hybrid` is e4m3 forward and e5m2 backward.
        amax_history_len: `delayed` only: length of the history of maxima, in micro-batches.
        num_layers_at_start_in_bf16, num_layers_at_end_in_bf16: blocks that keep `dtype`; not with `delayed`.
        output_layer: FP8 for the output layer too, always with scales of the current tensors. Its rounding reaches the
            loss directly; with a large vocabulary it also takes much of the time.
        param_gather: hold the matrices of the blocks only in FP8; the optimizer keeps fp32 masters. Half the memory,
            and half the traffic when the distributed optimizer gathers them. Transformer Engine only.
    """

    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"]
    format: Literal["hybrid", "e4m3"] = "hybrid"
    amax_history_len: int = Field(default=1024, ge=1)
    num_layers_at_start_in_bf16: int = Field(default=0, ge=0)
    num_layers_at_end_in_bf16: int = Field(default=0, ge=0)
    output_layer: bool = False
    param_gather: bool = False


Fp8OrNone = Annotated[
    Annotated[Literal["none"], Tag("as-none")] | Annotated[Fp8, Tag("as-recipe")],
    # `none` is a word rather than YAML's null, since an absent key of a phase means "inherit".
    Discriminator(lambda value: "as-none" if isinstance(value, str) else "as-recipe"),
]


def _refuse_fp8_alone(value: object) -> object:
    """Say why both moments cannot be FP8, rather than only what can be set; pydantic reports the error."""
    if value == "fp8":
        message = "'fp8' for both moments does not train: the second becomes zero where gradients are small"
        raise ValueError(f"{message}; use fp8_bf16 (the first in FP8, the second in bf16), bf16 or fp32")
    return value


class Precision(Frozen):
    """Number formats, and which layers compute with them.

    Attributes:
        dtype: of parameters and activations.
        moments: how Adam's two moments are stored; `fp8_bf16`: the first in FP8, the second in bf16.
        masters: how the optimizer's fp32 weights are stored: whole, or as the 16 bits that the bf16 weight lacks.
        gradients: how gradients are accumulated over micro-batches; `bf16`: and sent between ranks.
        fp8: `none`, or a recipe; a phase may override it.
        transformer_impl: Transformer Engine's layers (`transformer_engine`), megacode's own (`local`), or Transformer
            Engine's where they can run (`auto`). Checkpoints are the same.
    """

    dtype: Literal["fp32", "bf16"] = "bf16"
    moments: Annotated[Literal["fp32", "bf16", "fp8_bf16"], BeforeValidator(_refuse_fp8_alone)] = "fp32"
    masters: Literal["fp32", "bf16_remainder"] = "fp32"
    gradients: Literal["fp32", "bf16"] = "fp32"
    fp8: Fp8OrNone = "none"
    transformer_impl: Literal["auto", "local", "transformer_engine"] = "auto"

    @property
    def reduced(self) -> tuple[str, ...]:
        """The settings by which an optimizer takes less memory than with fp32 alone."""
        names = ("moments", "masters", "gradients")
        return tuple(name for name in names if getattr(self, name) != "fp32")


class CheckpointPolicy(Frozen):
    """When checkpoints are saved, and which are kept.

    Attributes:
        every: how often; absent: only at phase ends and at the end.
        keep_last: how many of the periodic checkpoints are kept; absent: all.
        keep_every: checkpoints at multiples of it are never deleted.
        at_start: also save the untrained model.
        keep_phase_ends: never delete the checkpoint at the end of a phase.
        asynchronous: write in the background during training (in YAML: `async`).
    """

    every: Length | None = None
    keep_last: int | None = Field(default=None, ge=1)
    keep_every: Length | None = None
    at_start: bool = False
    # An arm of a study may branch off at any of them, whatever `keep_last` deletes.
    keep_phase_ends: bool = True
    # Training waits only for the copy to host memory; the memory for it is the price.
    asynchronous: bool = Field(default=True, alias="async")


class Init(Frozen):
    """Where the initial weights come from.

    Attributes:
        from_: `random`, a run directory or a checkpoint (in YAML: `from`).
        load: only `weights`, or `all`: also optimizer and random state.
    """

    from_: str = Field(default="random", alias="from")
    load: Literal["weights", "all"] = "weights"

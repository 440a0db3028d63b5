"""What each setting of a run decides: the one table behind `plan --against` and the identities of a study.

Every setting of the config stands here once, with the effect of changing it. What is learned from is known in four
ways: the fingerprint chain holds the order of data, the learning rate and the batch are compared as functions of the
clock, and the settings of `LEARNED` count as they are. All others change nothing that is learned, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TABLE = {
    "bookkeeping": """name run_dir init.from init.load limits.wall_clock checkpoint.every checkpoint.keep_last
        checkpoint.keep_every checkpoint.at_start checkpoint.keep_phase_ends checkpoint.async health.hang_timeout
        health.report_every health.spikes.limit model.preset phases.*.name""",
    "measurement": """evaluate.every evaluate.at_phase_ends evaluate.suite evaluate.limit evaluate.without
        evaluate.run_generated_code evaluate.where evaluate.backend evaluate.device evaluate.threads
        evaluate.sbatch evaluate.keep_exports evaluate.wait validation.every validation.samples metrics.wait
        metrics.wandb.project metrics.wandb.entity metrics.wandb.name metrics.wandb.group metrics.wandb.tags
        metrics.wandb.mode metrics.wandb.x_axis metrics.mlflow.tracking_uri metrics.mlflow.experiment
        metrics.mlflow.name metrics.mlflow.x_axis metrics.opentelemetry.endpoint""",
    "layout": """parallel.tensor parallel.pipeline parallel.virtual_pipeline parallel.context
        parallel.sequence_parallel parallel.distributed_optimizer parallel.overlap_grad_reduce
        parallel.overlap_param_gather parallel.recompute train.micro_batch_size train.loader train.prefetch
        train.deterministic objects.cache objects.cache_bytes objects.ahead objects.requests objects.retries
        objects.timeout model.make_vocab_size_divisible_by precision.transformer_impl""",
    "data order": "seed train.seq_length",
    "future data": """sources.*.path sources.*.max_epochs sources.*.tokens sources.*.take caps phases.*.tokens
        phases.*.samples phases.*.iterations phases.*.until phases.*.blend phases.*.repeat""",
    "held-out data": "validation.fraction",
    "learning rate": """phases.*.learning_rate.schedule phases.*.learning_rate.peak phases.*.learning_rate.final
        phases.*.learning_rate.warmup phases.*.learning_rate.decay""",
    "batch size": "train.global_batch_size train.batch_ramp.start train.batch_ramp.increment train.batch_ramp.samples",
    "model": """model.num_layers model.hidden_size model.ffn_hidden_size model.num_attention_heads
        model.num_query_groups model.kv_channels model.vocab_size model.block model.normalization
        model.norm_bias model.norm_placement model.layernorm_epsilon model.qk_norm model.qkv_bias
        model.attention_pattern model.sliding_window model.rotary_pattern model.rotary_base model.rotary_percent
        model.rotary_scaling model.logit_scale model.share_embeddings_and_output_weights model.init_method_std
        model.init_seed""",
    "dropout": "model.hidden_dropout model.attention_dropout",
    "tokenizer": "tokenizer.kind tokenizer.path",
    "document form": """sources.*.fim_rate sources.*.fim_spm_rate sources.*.loss tokenizer.fim.prefix
        tokenizer.fim.middle tokenizer.fim.suffix""",
    "optimizer": """train.optimizer train.muon.momentum train.muon.nesterov train.muon.newton_schulz_steps
        train.muon.newton_schulz_dtype train.muon.scale train.muon.scale_factor phases.*.optimizer
        train.weight_decay train.adam_beta1 train.adam_beta2 train.adam_eps train.weight_decay_exempt
        train.clip_grad train.z_loss""",
    "attention mask": "train.isolate_documents",
    "number formats": """precision.dtype precision.moments precision.masters precision.gradients precision.fp8
        phases.*.fp8 health.fp8_probe.policy health.fp8_probe.every health.fp8_probe.loss health.fp8_probe.gradient
        health.fp8_probe.patience""",
    "withheld samples": "health.spikes.policy health.spikes.window health.spikes.threshold health.spikes.withhold",
}
EFFECTS: Mapping[str, str] = {key: effect for effect, keys in _TABLE.items() for key in keys.split()}

IN_FINGERPRINT = frozenset({"data order", "future data", "held-out data", "document form"})
FUNCTIONS_OF_THE_CLOCK = frozenset({"learning rate", "batch size"})
LEARNED = frozenset(
    {"model", "dropout", "tokenizer", "optimizer", "attention mask"} | {"number formats", "withheld samples"}
)
OUTSIDE = frozenset({"bookkeeping", "measurement", "layout"})
UNKNOWN_EFFECT = "other"
_NAMED = ("sources", "phases")  # sections whose next key is a name, or a number


def effect_of(key: str) -> str:
    """Return what a setting decides, such as `optimizer` for `train.clip_grad`; several for a whole section.

    Args:
        key: dotted, of a setting, of one inside it (`precision.fp8.recipe`) or of a section (`tokenizer`); phases by
            number (`phases[0].blend`).
    """
    parts = key.replace("[", ".").replace("]", "").split(".")
    if parts[0] in _NAMED and len(parts) > 1:
        parts[1] = "*"
    # The longest first: `precision.fp8.recipe` stands nowhere, and has the effect of `precision.fp8`.
    for length in range(len(parts), 0, -1):
        found = EFFECTS.get(".".join(parts[:length]))
        if found is not None:
            return found
    below = ".".join(parts) + "."
    effects = dict.fromkeys(effect for name, effect in EFFECTS.items() if name.startswith(below))
    return ", ".join(effects) or UNKNOWN_EFFECT


def flat(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a document and their values; lists and empty mappings are values."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from flat(item, f"{above}.{key}" if above else str(key))
    else:
        yield above, value

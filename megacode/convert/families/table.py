"""The tables: one a family. A new family is one more entry of `FAMILIES`, and a case in tests/convert/families.py.

Order matters: a model that several families compute is exported as the first of them.
"""

from __future__ import annotations

from megacode.convert.families.family import Family, Tensors
from megacode.convert.families.layers import LayerTypes, NoRopeLayers, OneWindow, RotatesWhereItSlides
from megacode.convert.families.rotary import Rotary, RotaryByKind
from megacode.convert.families.rows import Always, FamilyRow, Groups, HeadSize, Inert, Only, Same, Switch

ELSEWHERE: tuple[FamilyRow, ...] = (
    Inert(("architectures", "model_type"), "they choose the family"),
    Inert(("vocab_size",), "rows of the embedding; read with the weights"),
    Inert(("max_position_embeddings",), "the sequence length of training; rotary positions have no last one"),
    Inert(("bos_token_id", "eos_token_id", "pad_token_id"), "the tokenizer and generation_config.json have them"),
    Inert(("dtype", "torch_dtype"), "the weights' files have a type; checkpoints hold FP32"),
    Inert(("transformers_version", "_name_or_path", "name_or_path"), "provenance"),
    Inert(("use_cache", "cache_implementation"), "speed of generation"),
    Inert(("pretraining_tp",), "order of sums in old versions of transformers"),
    Inert(("output_attentions", "output_hidden_states", "return_dict"), "what else a forward pass returns"),
    Inert(("_attn_implementation", "_attn_implementation_autoset"), "the kernel of attention, not its result"),
    Inert(("id2label", "label2id", "problem_type", "tokenizer_class"), "defaults for other tasks and tools"),
    Inert(("chunk_size_feed_forward",), "no class here reads it"),
    Only("is_encoder_decoder", value=False, written=False),
    Inert(("auto_map",), "a model's own code is never run; the proof uses the class of transformers"),
    Inert(("model_max_length",), "the tokenizer's limit"),
    Inert(("unsloth_version", "unsloth_fixed", "transformers.js_config"), "notes of other programs"),
)
BASE: tuple[FamilyRow, ...] = (
    *ELSEWHERE,
    Same("num_hidden_layers", "num_layers"),
    Same("intermediate_size", "ffn_hidden_size"),
    Same("num_attention_heads", "num_attention_heads"),
    Groups(),
    Only("hidden_act", "silu"),
    Same("tie_word_embeddings", "share_embeddings_and_output_weights"),
    Same("initializer_range", "init_method_std"),
    Same("attention_dropout", "attention_dropout", 0.0),
)
RMS_NORM: tuple[FamilyRow, ...] = (
    Same("rms_norm_eps", "layernorm_epsilon"),
    Always("normalization", "RMSNorm"),
    Always("norm_bias", value=False),
    Always("block", "sequential"),
    Always("logit_scale", 1.0),
)
LAYER_NORM: tuple[FamilyRow, ...] = (Same("layer_norm_eps", "layernorm_epsilon"), Always("normalization", "LayerNorm"))
BEFORE = Always("norm_placement", "before")
FULL: tuple[FamilyRow, ...] = (Always("attention_pattern", ("full",)), Always("sliding_window", None))
ROTARY_EVERYWHERE = Always("rotary_pattern", ("rotary",))
NO_QKV_BIAS = Always("qkv_bias", value=False)
NO_QK_NORM = Always("qk_norm", "none")
# These classes put a bias on the output projection too, which megacode does not have.
NO_ATTENTION_BIAS: tuple[FamilyRow, ...] = (Only("attention_bias", value=False), NO_QKV_BIAS)
NO_MLP_BIAS = Only("mlp_bias", value=False)

LLAMA = Family(
    "Llama",
    "LlamaForCausalLM",
    "llama",
    (
        *BASE, *RMS_NORM, BEFORE, NO_QK_NORM, *NO_ATTENTION_BIAS, NO_MLP_BIAS, *FULL, ROTARY_EVERYWHERE,
        HeadSize("even"), Rotary(),
        Inert(("rope_interleaved", "is_llama_config"), "SmolLM 2's notes of its trainer; the class has halves"),
    ),
)  # fmt: skip
MISTRAL = Family(
    "Mistral",
    "MistralForCausalLM",
    "mistral",
    (*BASE, *RMS_NORM, BEFORE, NO_QK_NORM, NO_QKV_BIAS, OneWindow(), ROTARY_EVERYWHERE, HeadSize(), Rotary()),
)
QWEN2 = Family(
    "Qwen 2.5",
    "Qwen2ForCausalLM",
    "qwen2",
    (
        *BASE, *RMS_NORM, BEFORE, NO_QK_NORM, Always("qkv_bias", value=True), LayerTypes(switch=True),
        ROTARY_EVERYWHERE, HeadSize(), Rotary(), Only("use_mrope", value=False, written=False),
    ),
    pre_tokenizer=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)  # fmt: skip
QWEN3 = Family(
    "Qwen 3",
    "Qwen3ForCausalLM",
    "qwen3",
    (
        *BASE, *RMS_NORM, BEFORE, Always("qk_norm", "shared"), *NO_ATTENTION_BIAS, LayerTypes(switch=True),
        ROTARY_EVERYWHERE, HeadSize("written"), Rotary(),
    ),
)  # fmt: skip
SMOLLM3 = Family(
    "SmolLM 3",
    "SmolLM3ForCausalLM",
    "smollm3",
    (
        *BASE, *RMS_NORM, BEFORE, NO_QK_NORM, *NO_ATTENTION_BIAS, NO_MLP_BIAS, LayerTypes(switch=True),
        NoRopeLayers(), HeadSize(), Rotary(),
    ),
)  # fmt: skip
OLMO_ROWS: tuple[FamilyRow, ...] = (
    *BASE, *RMS_NORM, Always("norm_placement", "after"), Always("qk_norm", "across_heads"), *NO_ATTENTION_BIAS,
    ROTARY_EVERYWHERE, HeadSize(),
)  # fmt: skip
OLMO_TENSORS = Tensors(norms=("post_attention_layernorm", "post_feedforward_layernorm"))
OLMO2 = Family("OLMo 2", "Olmo2ForCausalLM", "olmo2", (*OLMO_ROWS, *FULL, Rotary()), OLMO_TENSORS)
OLMO3 = Family(
    "OLMo 3",
    "Olmo3ForCausalLM",
    "olmo3",
    (*OLMO_ROWS, LayerTypes(needs_window=True), RotaryByKind()),
    OLMO_TENSORS,
)
COHERE_ROWS: tuple[FamilyRow, ...] = (
    *BASE, *LAYER_NORM, Always("norm_bias", value=False), BEFORE, Always("block", "parallel"), *NO_ATTENTION_BIAS,
    Same("logit_scale", "logit_scale"), Rotary(),
)  # fmt: skip
COHERE = Family(
    "Cohere",
    "CohereForCausalLM",
    "cohere",
    (*COHERE_ROWS, Switch("use_qk_norm", "qk_norm", "per_head", "none"), *FULL, ROTARY_EVERYWHERE, HeadSize()),
    Tensors(interleaved_rotary=True),
)
COHERE2 = Family(
    "Cohere 2",
    "Cohere2ForCausalLM",
    "cohere2",
    (
        *COHERE_ROWS, NO_QK_NORM, LayerTypes(needs_window=True), RotatesWhereItSlides(), HeadSize(),
        Inert(("sliding_window_pattern",), "transformers makes layer_types of it"),
        Inert(("layer_switch",), "no class of transformers reads it"),
        Only("order_of_interleaved_layers", "local_attn_first", written=False),
        Only("position_embedding_type", "rope_gptj", written=False),
        Only("rotary_pct", 1.0, written=False),
        Only("use_embedding_sharing", value=True, written=False),
        Only("use_gated_activation", value=True, written=False),
        Only("use_parallel_block", value=True, written=False),
        Only("use_qk_norm", value=False, written=False),
        Inert(("use_parallel_embedding",), "how a tensor-parallel run cut the embedding"),
    ),
    Tensors(interleaved_rotary=True),
)  # fmt: skip
STABLELM = Family(
    "StableLM",
    "StableLmForCausalLM",
    "stablelm",
    (
        *BASE, *LAYER_NORM, Always("norm_bias", value=True), BEFORE, Always("logit_scale", 1.0),
        Switch("use_parallel_residual", "block", "parallel", "sequential"),
        Switch("qk_layernorm", "qk_norm", "per_head", "none"),
        Same("use_qkv_bias", "qkv_bias"), *FULL, ROTARY_EVERYWHERE, HeadSize("filled"), Rotary(partial=True),
        Only("hidden_dropout", 0.0),
        Inert(("use_norm_bias",), "the class always has biases, and the files contain them"),
        Only("rotary_scaling_factor", 1.0, written=False),
    ),
    Tensors(qk_norms=("q_layernorm.norms.{head}", "k_layernorm.norms.{head}"), norm_bias=True),
)  # fmt: skip

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3, OLMO2, OLMO3, COHERE, COHERE2, STABLELM)

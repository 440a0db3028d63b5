"""mcore's settings: the values that a wrong default would silently spoil a run with."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from megacode.mcore import device, translate


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    device.install()


def test_interleaved_pipelines_never_batch_their_sends_and_receives(program: ModuleType) -> None:
    config = translate.transformer_config(program.run_config(parallel={"pipeline": 2, "virtual_pipeline": 2}))
    assert config.batch_p2p_comm is False
    assert config.overlap_p2p_comm is device.on_gpu()


def test_plain_pipelines_keep_mcores_way(program: ModuleType) -> None:
    config = translate.transformer_config(program.run_config(parallel={"pipeline": 2}))
    assert config.batch_p2p_comm is True


def test_the_fused_cross_entropy_that_rounds_gradients_is_off(program: ModuleType) -> None:
    assert translate.transformer_config(program.run_config()).cross_entropy_loss_fusion is False


def test_the_schedulers_lower_bound_is_a_number(program: ModuleType) -> None:
    assert translate.optimizer_config(program.run_config()).min_lr == 0.0


def test_mcore_marks_slices_of_matrices_though_it_does_not_fill_them(program: ModuleType) -> None:
    config = translate.transformer_config(program.run_config())
    assert config.perform_initialization is True
    weight = torch.full((2, 2), 3.0)
    assert config.init_method(weight) is weight
    assert config.output_layer_init_method(weight) is weight


def test_losses_are_means_over_tokens_of_the_global_batch(program: ModuleType) -> None:
    assert translate.transformer_config(program.run_config()).calculate_per_token_loss is True


@pytest.mark.parametrize(("tensor", "rows"), [(1, 256), (2, 256), (4, 512)])
def test_the_embedding_is_padded_for_the_tensor_parallel_size(program: ModuleType, tensor: int, rows: int) -> None:
    model = {"num_query_groups": 4, "num_attention_heads": 4}
    config = program.run_config(model=model, parallel={"tensor": tensor})
    assert translate.padded_vocab_size(config, 250) == rows


def test_model_and_optimizer_take_our_values(program: ModuleType) -> None:
    train = {"weight_decay": 0.3, "clip_grad": 0.7, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_eps": 1e-7}
    config = program.run_config(model={"layernorm_epsilon": 1e-4}, train=train, dtype="bf16")
    adam, model = translate.optimizer_config(config), translate.transformer_config(config)
    assert (adam.weight_decay, adam.clip_grad) == (0.3, 0.7)
    assert (adam.adam_beta1, adam.adam_beta2, adam.adam_eps) == (0.8, 0.9, 1e-7)
    assert model.layernorm_epsilon == 1e-4
    assert model.params_dtype is model.pipeline_dtype is torch.bfloat16
    assert model.gated_linear_unit is True
    assert model.add_bias_linear is False


@pytest.mark.parametrize(
    ("way", "expected"), [("none", (None, None)), ("selective", ("selective", None)), ("full", ("full", 1))]
)
def test_recomputation_is_mcores(program: ModuleType, way: str, expected: tuple[str | None, int | None]) -> None:
    config = translate.transformer_config(program.run_config(parallel={"recompute": way}))
    assert (config.recompute_granularity, config.recompute_num_layers) == expected

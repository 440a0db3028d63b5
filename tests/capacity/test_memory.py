"""What a rank holds: counts that add up over ranks, and activations by tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import ConfigError
from megacode.capacity.activations import head_tensors, layer_tensors, per_token
from megacode.capacity.buffers import buffers, countable, rank_parameters
from megacode.capacity.costs import parameter_counts, parameters
from megacode.capacity.hardware import Hardware, load_hardware
from megacode.capacity.layout import Layout
from megacode.capacity.memory import fullest, stage_memory

Place = Callable[..., Layout]
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"tensor": 4, "sequence_parallel": True},
    {"pipeline": 4},
    {"pipeline": 2, "virtual_pipeline": 4, "tensor": 2},
    {"context": 2, "tensor": 2},
    {"distributed_optimizer": False, "pipeline": 2},
]


@pytest.fixture(scope="module")
def h100() -> Hardware:
    return load_hardware("H100")


@pytest.mark.parametrize("parallel", LAYOUTS)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_add_up_to_the_model_s_over_ranks(place: Place, parallel: dict[str, Any], tied: bool) -> None:
    placed = place(16, parallel=parallel, model={"share_embeddings_and_output_weights": tied, "block": "parallel"})
    tensor, stages = placed.config.parallel.tensor, placed.config.parallel.pipeline
    whole = parameter_counts(placed.config.model, placed.vocabulary_rows * tensor)
    found = [rank_parameters(placed, stage) for stage in range(stages)]
    assert vars(whole).keys() == vars(found[0]).keys() >= {"embedding", "attention_qkv", "mlp_down", "norms", "output"}
    for kind, count in vars(whole).items():
        slices = 1 if kind == "norms" else tensor
        copies = count if kind != "output" or count or stages == 1 else whole.embedding  # tied, on the last stage
        assert sum(getattr(rank, kind) for rank in found) * slices == copies


@given(
    parallel=st.sampled_from(LAYOUTS),
    overlap=st.booleans(),
    hidden=st.sampled_from([1008, 1024, 1040]),
    gpus=st.sampled_from([16, 48, 2048]),
)
def test_shares_of_the_optimizer_add_up_and_none_is_larger_than_stated(
    place: Place, parallel: dict[str, Any], overlap: bool, hidden: int, gpus: int
) -> None:
    changes = {**parallel, "overlap_grad_reduce": overlap, "distributed_optimizer": True}
    placed = place(gpus, parallel=changes, model={"hidden_size": hidden}, train={"global_batch_size": 4 * gpus})
    stages = range(placed.config.parallel.pipeline)
    assert len(stages) == parallel.get("pipeline", 1)
    for stage in stages:
        found = buffers(placed, stage)
        shares = [sum(b.share(index, placed.shards) for b in found) for index in range(placed.shards)]
        assert sum(shares) == rank_parameters(placed, stage).total == sum(b.parameters for b in found)
        assert max(shares) <= sum(b.share(None, placed.shards) for b in found)
        assert countable(placed, stage).gradients == 4 * sum(b.elements for b in found)
        for buffer in found:
            assert all(end % placed.shards == first % 128 == 0 for first, end in buffer.buckets)


def test_bytes_follow_the_number_formats(place: Place) -> None:
    count = parameters(place().config.model, 32768)
    bf16, fp32 = countable(place(), 0), countable(place(dtype="fp32"), 0)
    assert (bf16.weights, bf16.gradients, bf16.optimizer, bf16.total) == (2 * count, 4 * count, 12 * count, 18 * count)
    assert (fp32.weights, fp32.gradients, fp32.optimizer) == (4 * count, 4 * count, 8 * count)
    assert countable(place(64), 0).optimizer == pytest.approx(12 * count / 64, rel=1e-4)
    whole = place(64, parallel={"distributed_optimizer": False})
    assert countable(whole, 0).optimizer == 12 * count


def test_gradients_are_cut_into_buckets_on_the_first_stage_alone(place: Place) -> None:
    overlapped = {"pipeline": 2, "overlap_grad_reduce": True}
    assert [len(buffers(place(16, parallel=overlapped), stage)[0].buckets) for stage in (0, 1)] == [2, 1]
    assert len(buffers(place(16, parallel={"pipeline": 2}), 0)[0].buckets) == 1


def test_a_layer_keeps_what_korthikanti_counts_less_what_these_kernels_do_not_keep(place: Place) -> None:
    placed = place(model={"hidden_size": 1024, "ffn_hidden_size": 4096})
    # Korthikanti et al. (2022), equation 2, counts 34 bytes of s b h with a GELU MLP of 4 h, and 5 a s / h for the
    # attention matrix that flash attention never keeps. SwiGLU keeps 3 x 8 of s b h where GELU keeps 16; there are no
    # dropout masks (3), and attention's output is the projection's input. 2 x 2 for both norms' inputs, 2 x 2 for their
    # outputs, 6 for queries, keys, values, 2 for the output.
    kept = per_token(layer_tensors(placed, "transformer_engine"), "none")
    statistics = 2 * 4 + 8 * 4  # two norms' and the softmax's
    assert kept == (4 + 4 + 6 + 2 + 24) * 1024 + statistics
    assert per_token(layer_tensors(placed, "local"), "none") == kept + 2 * 4096


def test_recomputation_keeps_less_and_full_only_the_input(place: Place) -> None:
    for layers in ("transformer_engine", "local"):
        for parallel in LAYOUTS:
            tensors = layer_tensors(place(16, parallel=parallel), layers)
            none, selective, full = (per_token(tensors, way) for way in ("none", "selective", "full"))
            assert none > selective > full
        assert per_token(layer_tensors(place(), layers), "full") == 2 * 1024


def test_tensor_parallel_cuts_everything_only_with_sequence_parallel(place: Place) -> None:
    def kept(parallel: dict[str, Any]) -> float:
        return per_token(layer_tensors(place(16, parallel=parallel), "transformer_engine"), "none")

    assert kept({"tensor": 4, "sequence_parallel": True}) == kept({}) / 4
    assert kept({"tensor": 4}) > kept({}) / 4 + 3 * 2 * 1024


def test_fp8_keeps_inputs_in_one_byte_and_copies_of_weights(place: Place, h100: Hardware) -> None:
    fp8 = place(precision={"fp8": {"recipe": "delayed"}})
    saved = {tensor.name: tensor.bytes_per_token for tensor in layer_tensors(fp8, "transformer_engine")}
    assert saved["activated"] == 4096
    assert saved["projection's input"] == 1024
    assert saved["attention output"] == 2 * 1024
    assert stage_memory(fp8, 0, h100, "transformer_engine").fp8_weights == 2 * rank_parameters(fp8, 0).in_layers


def test_the_output_layer_and_weights_held_in_fp8_are_counted(place: Place, h100: Hardware) -> None:
    def memory(**recipe: Any) -> Any:
        placed = place(precision={"fp8": {"recipe": "tensorwise", **recipe}})
        return stage_memory(placed, 0, h100, "transformer_engine")

    matrices = rank_parameters(place(), 0).in_layers
    plain, output, held = memory(), memory(output_layer=True), memory(param_gather=True)
    assert output.fp8_weights - plain.fp8_weights == 2 * 32768 * 1024
    assert plain.weights - held.weights == plain.fp8_weights - held.fp8_weights == matrices
    assert memory(num_layers_at_start_in_bf16=2).fp8_weights == plain.fp8_weights * 6 / 8
    assert plain.activations < memory(num_layers_at_end_in_bf16=2).activations
    assert (
        memory(num_layers_at_end_in_bf16=2).activations
        < stage_memory(place(), 0, h100, "transformer_engine").activations
    )


def test_a_vocabulary_s_logits_are_held_in_bf16_or_twice(place: Place, h100: Hardware) -> None:
    placed = place()
    engine, local = (stage_memory(placed, 0, h100, layers) for layers in ("transformer_engine", "local"))
    assert engine.logits == 2 * (32768 + 1024) * 2048  # beside them the gradient of the output layer's input
    assert local.logits == 6 * 32768 * 2048
    assert head_tensors(placed, "local")[-1].bytes_per_token == 4 * 32768


def test_pipelines_keep_as_many_micro_batches_as_they_have_begun(place: Place) -> None:
    plain = place(4, parallel={"pipeline": 4})
    assert [plain.layers_in_flight(stage) for stage in range(4)] == [8, 6, 4, 2]
    few = place(4, parallel={"pipeline": 4}, train={"global_batch_size": 2})
    assert [few.layers_in_flight(stage) for stage in range(4)] == [4, 4, 4, 2]
    # Narayanan et al. (2021): interleaving needs more. Stage 0 of 2 with 4 pieces: 2 x 1 + 3 x 2 + 1 pieces of a layer.
    assert place(2, parallel={"pipeline": 2, "virtual_pipeline": 4}).layers_in_flight(0) == 9
    assert place(2, parallel={"pipeline": 2}).layers_in_flight(0) == 8


@given(st.sampled_from(LAYOUTS), st.sampled_from(["none", "selective", "full"]), st.sampled_from([1, 2]))
def test_more_at_once_never_takes_less(place: Place, parallel: dict[str, Any], recompute: str, micro: int) -> None:
    hardware = load_hardware("H100")
    layout = {**parallel, "recompute": recompute}

    def total(**changes: Any) -> float:
        train = {"micro_batch_size": micro, "global_batch_size": 128, **changes.pop("train", {})}
        return fullest(place(16, parallel=layout, train=train, **changes), hardware, "transformer_engine").total

    assert total(train={"micro_batch_size": 2 * micro}) > total()
    assert total(model={"num_layers": 16}) > total()


def test_full_recomputation_needs_room_for_one_whole_layer(place: Place, h100: Hardware) -> None:
    placed = place(model={"vocab_size": 256}, parallel={"recompute": "full"})
    placed = Layout(placed.config, 1, 256)
    memory = stage_memory(placed, 0, h100, "transformer_engine")
    tensors = layer_tensors(placed, "transformer_engine")
    layer = 2048 * (per_token(tensors, "none") - per_token(tensors, "full"))
    assert memory.working > layer - memory.logits
    assert memory.activations == 8 * 2048 * 2 * 1024


def test_gpus_that_are_no_whole_copies_and_batches_that_do_not_divide_are_refused(place: Place) -> None:
    with pytest.raises(ConfigError, match="--gpus: 10 is not divisible by 4, the GPUs that hold one copy") as caught:
        place(10, parallel={"tensor": 4}).check()
    assert caught.value.problems[0].fix == "use 8 or 12, or change the parallel section"
    with pytest.raises(ConfigError, match="x pipeline 2, required by virtual_pipeline"):
        place(64, parallel={"pipeline": 2, "virtual_pipeline": 2}, train={"global_batch_size": 96}).check()
    with pytest.raises(
        ConfigError, match=r"parallel: global_batch_size 64 is not divisible by 6.*\n.*use 8 or 16 GPUs"
    ):
        place(12, parallel={"tensor": 2}).check()


@pytest.mark.parametrize("moments", ["fp32", "bf16", "fp8_bf16"])
@pytest.mark.parametrize("masters", ["fp32", "bf16_remainder"])
@pytest.mark.parametrize("gradients", ["fp32", "bf16"])
def test_every_format_of_the_optimizer_has_its_bytes(place: Place, moments: str, masters: str, gradients: str) -> None:
    count = parameters(place().config.model, 32768)
    changes = {"moments": moments, "masters": masters, "gradients": gradients}
    found = countable(place(precision=changes), 0)
    each = {"moments": {"fp32": 8, "bf16": 4, "fp8_bf16": 3}[moments], "masters": 4 if masters == "fp32" else 2}
    assert found.optimizer == sum(each.values()) * count
    assert found.gradients == (4 if gradients == "fp32" else 2) * count
    assert found.weights == 2 * count


def test_copies_at_the_end_of_an_iteration_count_where_they_exceed_the_activations(
    place: Place, h100: Hardware
) -> None:
    def working(gpus: int, **precision: str) -> float:
        tiny = {"seq_length": 128, "global_batch_size": 4 * gpus}
        return stage_memory(place(gpus, precision=precision, train=tiny), 0, h100, "transformer_engine").working

    plain, parameters_here = working(4), rank_parameters(place(), 0).total
    assert working(4, masters="bf16_remainder") == plain
    # All gradients of the other ranks, 2 bytes each, less the activations; fp32 copies of a quarter of both moments.
    assert 1.5 * parameters_here < working(4, gradients="bf16") < 2 * parameters_here
    assert plain < working(4, moments="bf16") <= 8 * parameters_here / 4
    assert working(1, gradients="bf16") == working(1)
    assert working(1, moments="bf16") <= 8 * 2**26

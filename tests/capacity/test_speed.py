"""The step-time model: its sums agree with counts and with the literature's formulas, and it moves the right way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from megacode.capacity import communication
from megacode.capacity.activations import Layers
from megacode.capacity.costs import flops_per_token
from megacode.capacity.hardware import Hardware, load_hardware
from megacode.capacity.layout import Layout
from megacode.capacity.speed import StepTime, step_time
from megacode.capacity.traffic import casts, layer_traffic

Place = Callable[..., Layout]


@pytest.fixture(scope="module")
def h100() -> Hardware:
    return load_hardware("H100")


def changed(hardware: Hardware, **values: float) -> Hardware:
    return replace(hardware, values={**hardware.values, **values})


@pytest.fixture(scope="module")
def perfect(h100: Hardware) -> Hardware:
    """A GPU that does nothing but matrix products, at its peak."""
    free = {name: 1e30 for name in h100.values if name.endswith("bandwidth")}
    nothing = ["host_seconds_a_layer", "idle_seconds_a_layer", "step_overhead_seconds", "half_efficient_width"]
    nothing += [name for name in h100.values if "latency" in name]
    whole = [
        name for name in h100.values if name.endswith("efficiency") or name in ("attention_at_64", "attention_by_torch")
    ]
    values = {**free, **dict.fromkeys(nothing, 0.0), **dict.fromkeys(whole, 1.0)}
    return changed(h100, **values, attention_backward_flops=2.0)


def time_of(placed: Layout, hardware: Hardware) -> StepTime:
    return step_time(placed, hardware, "transformer_engine")


@pytest.mark.parametrize("parallel", [{}, {"tensor": 4}, {"context": 2}, {"pipeline": 4}, {"recompute": "selective"}])
def test_a_gpu_at_its_peak_needs_exactly_the_plan_s_operations(
    place: Place, perfect: Hardware, parallel: dict[str, Any]
) -> None:
    placed = place(8, parallel=parallel)
    model, train = placed.config.model, placed.config.train
    whole = flops_per_token(model, 32768, train.seq_length) * train.seq_length * train.global_batch_size
    time = time_of(placed, perfect)
    stages = placed.config.parallel.pipeline
    busy = (time.matrices + time.attention) * placed.gpus * perfect["bf16_flops"]
    # Of a pipeline it is the slowest stage's: the last one's, which has the logits.
    logits = 6 * 32768 * model.hidden_size * train.seq_length * train.global_batch_size
    assert busy == pytest.approx(whole - logits + stages * logits, rel=1e-9)
    assert time.total == pytest.approx(time.matrices + time.attention + time.recompute + time.bubble, rel=1e-9)


@pytest.mark.parametrize(("pipeline", "virtual", "batch"), [(4, None, 16), (4, 2, 16), (8, None, 8), (2, 4, 64)])
def test_the_bubble_of_equal_stages_is_narayanan_s(
    place: Place, perfect: Hardware, pipeline: int, virtual: int | None, batch: int
) -> None:
    parallel = {"pipeline": pipeline, "virtual_pipeline": virtual}
    model = {"vocab_size": 2, "make_vocab_size_divisible_by": 1, "num_layers": 16}
    config = place(pipeline, parallel=parallel, model=model, train={"global_batch_size": batch}).config
    time = time_of(Layout(config, pipeline, 2), perfect)
    ideal = time.matrices + time.attention
    # Narayanan et al. (2021), section 2.2: (p - 1) / (v m). Two tokens of vocabulary: all stages are alike.
    assert time.bubble / ideal == pytest.approx((pipeline - 1) / ((virtual or 1) * batch), rel=1e-3)


def test_more_gpus_are_faster_but_never_more_than_so_many_times(place: Place, h100: Hardware) -> None:
    last = None
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        total = time_of(place(gpus), h100).total
        if last:
            assert last / 2.001 < total < last
        last = total


def test_recomputation_costs_a_forward_pass(place: Place, h100: Hardware) -> None:
    long = {"seq_length": 8192}
    placed = (place(parallel={"recompute": way}, train=long) for way in ("none", "selective", "full"))
    none, selective, full = (time_of(each, h100) for each in placed)
    assert (none.recompute, selective.recompute < full.recompute) == (0.0, True)
    assert 0.2 < full.recompute / none.total < 0.34
    assert full.total - none.total == pytest.approx(full.recompute)


def test_fp8_halves_products_at_best_and_casts(place: Place, h100: Hardware) -> None:
    bf16, fp8 = place(), place(precision={"fp8": {"recipe": "delayed"}})
    fast, slow = time_of(fp8, h100), time_of(bf16, h100)
    assert 0.5 * slow.matrices < fast.matrices < slow.matrices
    assert fast.elementwise > slow.elementwise
    assert fast.attention == slow.attention


def test_small_layers_wait_for_the_host(place: Place, h100: Hardware) -> None:
    small = {"hidden_size": 64, "ffn_hidden_size": 64, "num_attention_heads": 1, "num_query_groups": 1}
    time = time_of(place(model=small, train={"seq_length": 16}), h100)
    assert time.launches > 0.5 * time.total
    large = place(train={"seq_length": 8192})
    layers = large.micro_batches * large.config.model.num_layers
    assert time_of(large, h100).launches == pytest.approx(layers * h100["idle_seconds_a_layer"])


def test_a_parallel_block_s_norm_and_sums_take_one_pass_forward_and_one_backward(place: Place) -> None:
    def moved(layers: Layers = "transformer_engine", **parallel: Any) -> tuple[float, float]:
        placed = place(4, model={"block": "parallel"}, parallel=parallel)
        forward, backward = (each / placed.tokens / 2 for each in layer_traffic(placed, layers))
        tensor = placed.config.parallel.tensor
        inside = (2 * 3 * 1024 / tensor, 4096 / tensor)  # queries, keys and values; the width of the MLP
        return (forward - inside[0] - 3 * inside[1]) / 1024, (backward - inside[0] - 5 * inside[1]) / 1024

    # Norm: 2, sum of three: 4. Backward: x, three gradients, and the result.
    assert moved() == (2 + 4, 5)
    # Branches are summed before they are reduced, and their gradients when they are gathered: of the whole sequence.
    assert moved(tensor=2) == (2 + 3 + 3, 4 + 3)
    assert moved(tensor=2, sequence_parallel=True) == ((2 + 3) / 2 + 3, 4 / 2 + 3)
    assert moved("local") == (2 + 3 + 3, 3 + 3 + 3)


def test_a_cast_reads_once_more_for_tensorwise_scales_and_swiglu_leaves_delayed_ones_a_transposition(
    place: Place,
) -> None:
    def cast(recipe: str) -> tuple[float, float]:
        placed = place(precision={"fp8": {"recipe": recipe}})
        forward, backward = casts(placed)
        return forward / placed.tokens / 1024, backward / placed.tokens / 1024

    # Of 1,024 channels: two norms' outputs, attention's, 4 of the MLP; the gradients of two sums, 3 and 8.
    assert cast("delayed") == (4 * 3 + 2 * 4, 4 * 5 + 2 * 8)
    assert cast("tensorwise") == (6 * 3 + 6 * 4, 6 * 5 + 6 * 8)
    assert cast("blockwise") == (4 * 3 + 4 * 4, 4 * 5 + 4 * 8)


def test_an_output_layer_in_fp8_casts_the_logits_gradients(place: Place, h100: Hardware) -> None:
    plain, output = (
        time_of(place(precision={"fp8": {"recipe": "delayed", "output_layer": on}}), h100) for on in (False, True)
    )
    moved = 64 * 2048 * 6 * (32768 + 1024)
    rate = h100["memory_bandwidth"] * h100["cast_efficiency"]
    assert output.elementwise - plain.elementwise == pytest.approx(moved / rate)
    assert output.matrices < plain.matrices


def test_a_group_s_link_is_the_node_s_or_as_many_adapters_as_it_has_ranks_there(h100: Hardware) -> None:
    adapter, node = h100["network_bandwidth"], h100["node_bandwidth"]
    assert communication.link(h100, 8, 1).bandwidth == node
    assert communication.link(h100, 2, 4).bandwidth == node
    assert communication.link(h100, 16, 1).bandwidth == min(8 * adapter, node)
    assert communication.link(h100, 64, 2).bandwidth == 4 * adapter
    assert communication.link(h100, 2, 8).bandwidth == adapter
    assert communication.link(h100, 1, 1).seconds(1e12) == 0.0
    assert communication.link(h100, 4096, 8).latency > communication.link(h100, 8, 8).latency


def test_tensor_parallel_moves_what_the_blocks_exchange(place: Place, h100: Hardware) -> None:
    sliced = {"tensor": 4, "sequence_parallel": True}
    once = 2 * 1024 * 2048 * 3 / 4 / h100["node_bandwidth"]
    latency = communication.link(h100, 4, 1).latency
    sequential = communication.tensor_parallel(place(4, parallel=sliced), h100, "transformer_engine")
    assert sequential.forward == pytest.approx(4 * (once + latency))
    assert sequential.backward == pytest.approx(5 / 4 * sequential.forward + (once + latency))
    parallel = place(4, parallel=sliced, model={"block": "parallel"})
    assert communication.tensor_parallel(parallel, h100, "local").forward == pytest.approx(2 * (once + latency))
    assert communication.tensor_parallel(place(), h100, "local").forward == 0.0


def test_reductions_are_hidden_but_for_their_last_bucket(place: Place, h100: Hardware) -> None:
    def exposed(backward: float, **parallel: Any) -> float:
        return communication.data_parallel(place(64, parallel=parallel), h100, backward / 2, backward).exposed

    plain = exposed(1.0)
    found = communication.data_parallel(place(64), h100, 1.0, 1.0)
    assert plain == found.gradients + found.weights
    hidden = exposed(1e3, overlap_grad_reduce=True, overlap_param_gather=True)
    assert plain / 10 < hidden < plain / 2
    assert exposed(1e-3, overlap_grad_reduce=True, overlap_param_gather=True) > 0.8 * plain
    # An all-reduce of fp32 gradients, or a reduce-scatter of them and an all-gather of bf16 weights.
    whole = communication.data_parallel(place(64, parallel={"distributed_optimizer": False}), h100, 1.0, 1.0)
    assert (whole.gradients, whole.weights) == (pytest.approx(2 * found.gradients, rel=1e-3), 0.0)


def test_a_shared_embedding_is_summed_between_the_ends_of_a_pipeline(place: Place, h100: Hardware) -> None:
    def exposed(tied: bool) -> float:
        model = {"share_embeddings_and_output_weights": tied}
        return communication.data_parallel(place(16, parallel={"pipeline": 2}, model=model), h100, 0.0, 0.0).exposed

    assert exposed(True) > exposed(False) + 4 * 32768 * 1024 / h100["node_bandwidth"]


def test_pipelines_pay_for_transfers_between_nodes(place: Place, h100: Hardware) -> None:
    assert time_of(place(1), h100).pipeline_transfer == 0.0
    inside, across = (time_of(place(n, parallel={"pipeline": 2}), h100).pipeline_transfer for n in (8, 16))
    assert across > 2 * inside > 0.0


# Milliseconds of a step of 32 sequences of 8,192 tokens on one H200, by preset, micro-batch, FP8 and whether the output
# layer is in it: tools/bench/gpu_step.py, 2026-11-27, median of two.
MEASURED = [
    ("to-code-2.8b", 4, None, False, 9376),
    ("to-code-2.8b", 2, "delayed", False, 7415),
    ("to-code-2.8b", 2, "delayed", True, 6854),
    ("to-code-470m", 4, None, False, 1865),
    ("to-code-470m", 4, "delayed", False, 1757),
]


@pytest.mark.parametrize(("preset", "micro", "recipe", "output_layer", "milliseconds"), MEASURED)
def test_the_model_gives_what_was_measured(
    on_one_gpu: Place, preset: str, micro: int, recipe: str | None, output_layer: bool, milliseconds: float
) -> None:
    time = time_of(on_one_gpu(preset, micro, recipe, output_layer), load_hardware("H200"))
    assert 1e3 * time.total == pytest.approx(milliseconds, rel=0.04)

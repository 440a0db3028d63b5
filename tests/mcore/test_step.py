"""One process: what a step reports, what it leaves alone, and what does not depend on how a batch is cut."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from megacode.plan.batch import samples_digest

pytestmark = pytest.mark.usefixtures("alone")


def total(parts: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for chunk in parts.chunks for p in chunk.parameters()])


def test_a_tiny_model_learns(program: ModuleType) -> None:
    losses = [result["loss"] for result in program.iterate(program.started(program.run_config()), 0, 30)]
    assert losses[0] == pytest.approx(math.log(program.VOCAB), abs=0.05)
    assert losses[-1] < losses[0] - 0.2


def test_sums_by_source_add_up_to_the_loss_and_count_valid_tokens(program: ModuleType) -> None:
    parts = program.started(program.run_config())
    batches = program.microbatches(parts, 0)
    result = program.iterate(parts, 0, 1)[0]
    assert sum(result["loss_sum_by_source"]) / sum(result["tokens_by_source"]) == pytest.approx(result["loss"])
    assert sum(result["tokens_by_source"]) == sum(int(batch.loss_mask.sum()) for batch in batches)
    assert result["samples_by_source"] == [4, 4]


def test_the_loss_is_the_mean_over_valid_tokens_however_the_batch_is_cut(program: ModuleType) -> None:
    from megacode.mcore.step import train_step

    # Adam divides by the gradient's size: a large epsilon keeps rounding out of gradients that are nearly zero.
    config = program.run_config(train={"adam_eps": 1e-3})
    whole, cut = program.started(config), program.started(config)
    batches = program.microbatches(whole, 0)
    joined = program.Batch(
        *(torch.cat([getattr(batch, name) for batch in batches]) for name in ("tokens", "labels", "loss_mask")),
        None,
        None,
        torch.cat([batch.source_ids for batch in batches]),
        torch.cat([batch.samples for batch in batches]),
    )
    first, second = train_step(whole, [joined], 1e-3, 2), train_step(cut, batches, 1e-3, 2)
    assert first.loss == pytest.approx(second.loss, abs=1e-6)
    assert first.samples_digest == second.samples_digest == int(samples_digest(np.arange(8)).sum())
    assert first.grad_norm == pytest.approx(second.grad_norm, abs=1e-6)
    torch.testing.assert_close(total(whole), total(cut), atol=1e-6, rtol=0)


def test_sequences_that_fill_up_a_batch_count_nowhere(program: ModuleType) -> None:
    from megacode.mcore.step import train_step

    plain, filled = program.started(program.run_config()), program.started(program.run_config())
    batches = program.microbatches(plain, 0)
    filler = program.microbatch(99, 0)
    filler.loss_mask, filler.source_ids = torch.zeros_like(filler.loss_mask), torch.tensor([-1, -1])
    first, second = train_step(plain, batches, 1e-3, 2), train_step(filled, [*batches, filler], 1e-3, 2)
    assert second.loss == pytest.approx(first.loss, abs=1e-7)
    assert second.samples_by_source == first.samples_by_source
    assert second.grad_norm == pytest.approx(first.grad_norm, abs=1e-6)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_non_finite_gradient_is_reported_and_never_applied(program: ModuleType, sharded: bool) -> None:
    from megacode.mcore.step import train_step

    parts = program.started(program.run_config(parallel={"distributed_optimizer": sharded}))
    program.iterate(parts, 0, 2)
    before = total(parts)
    spoilt = next(parts.chunks[0].parameters()).data
    spoilt[0] = float("inf")
    batches = program.microbatches(parts, 2)
    batches[1].tokens[:] = 0
    result = train_step(parts, batches, 1e-3, 2)
    spoilt[0] = before.view(-1)[: spoilt.size(1)]
    assert result.skipped
    assert math.isnan(result.grad_norm)
    assert torch.equal(total(parts), before)
    after = program.iterate(parts, 2, 1)[0]
    assert not after["skipped"]
    assert math.isfinite(after["loss"])


def test_evaluation_changes_nothing_and_sees_what_training_sees(program: ModuleType) -> None:
    from megacode.mcore.step import evaluate

    parts = program.started(program.run_config(model={"hidden_dropout": 0.2, "attention_dropout": 0.2}))
    program.iterate(parts, 0, 2)
    before = total(parts)
    batches = program.microbatches(parts, 2)
    first, second = evaluate(parts, batches, 2), evaluate(parts, batches, 2)
    assert first == second
    assert torch.equal(total(parts), before)
    assert sum(first.tokens) == sum(int(batch.loss_mask.sum()) for batch in batches)
    undropped = program.started(program.run_config())
    assert evaluate(undropped, batches, 2).loss == pytest.approx(program.iterate(undropped, 2, 1)[0]["loss"])


def test_nothing_evaluated_has_no_loss(program: ModuleType) -> None:
    from megacode.mcore.step import Losses

    assert math.isnan(Losses([0.0], [0], [0], 0).loss)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_whole_without_padding_and_explain_the_loss(program: ModuleType, tied: bool) -> None:
    from megacode.mcore.step import evaluate, logits

    parts = program.started(program.run_config(model={"share_embeddings_and_output_weights": tied}))
    batch = program.microbatch(0, 0)
    found = logits(parts, batch.tokens)
    assert found.shape == (program.MICRO, program.SEQ_LENGTH, program.VOCAB)
    losses = torch.nn.functional.cross_entropy(found.flatten(0, 1), batch.labels.flatten(), reduction="none")
    expected = (losses * batch.loss_mask.flatten()).sum() / batch.loss_mask.sum()
    assert evaluate(parts, [batch], 2).loss == pytest.approx(expected.item(), abs=1e-6)


def test_padding_takes_no_part_in_the_loss(program: ModuleType) -> None:
    few, many = (program.run_config(model={"make_vocab_size_divisible_by": n}) for n in (2, 512))
    first, second = (program.iterate(program.started(config), 0, 3) for config in (few, many))
    assert [a["loss"] for a in first] == pytest.approx([b["loss"] for b in second], abs=1e-6)


def test_norms_have_no_weight_decay_and_matrices_do(program: ModuleType) -> None:
    parts = program.started(program.run_config(parallel={"distributed_optimizer": True}))
    decays = {group["wd_mult"]: sum(p.numel() for p in group["params"]) for group in parts.optimizer.param_groups}
    norms = sum(p.numel() for p in parts.chunks[0].parameters() if p.dim() == 1)
    assert decays[0.0] == norms == (4 * 2 + 1) * 32
    assert decays[1.0] == len(total(parts)) - norms
    assert {group["weight_decay"] for group in parts.optimizer.param_groups} == {0.0, 0.1}


@pytest.mark.parametrize("sharded", [False, True])
def test_a_step_is_torchs_adamw_with_norms_exempt_from_decay(program: ModuleType, sharded: bool) -> None:
    from megacode.mcore.step import train_step

    parts = program.started(program.run_config(parallel={"distributed_optimizer": sharded}, train={"clip_grad": 0.0}))
    model = list(parts.chunks[0].parameters())
    plain = [p.detach().clone() for p in model]
    assert {p.dim() for p in plain} == {1, 2}
    groups = [{"params": [p for p in plain if (p.dim() > 1) is decayed]} for decayed in (True, False)]
    groups[1]["weight_decay"] = 0.0
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for iteration in range(3):
        train_step(parts, program.microbatches(parts, iteration), 3e-2, 2)
        for copy, parameter in zip(plain, model, strict=True):
            copy.grad = parameter.main_grad.clone()
        for group in adam.param_groups:
            group["lr"] = 3e-2
        adam.step()
        for copy, parameter in zip(plain, model, strict=True):
            torch.testing.assert_close(parameter.detach(), copy, atol=2e-6, rtol=1e-5)


def test_a_learning_rate_of_zero_changes_nothing_and_the_one_given_is_used(program: ModuleType) -> None:
    from megacode.mcore.step import train_step

    parts = program.started(program.run_config())
    before = total(parts)
    train_step(parts, program.microbatches(parts, 0), 0.0, 2)
    assert torch.equal(total(parts), before)
    train_step(parts, program.microbatches(parts, 1), 0.5, 2)
    assert {group["lr"] for group in parts.optimizer.param_groups} == {0.5}
    assert not torch.equal(total(parts), before)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_gathered_in_place_are_autograds(program: ModuleType, tied: bool) -> None:
    model = {"share_embeddings_and_output_weights": tied}
    plain, in_place = program.started(program.run_config(model=model)), program.started(program.run_config(model=model))
    for parameter in plain.chunks[0].parameters():
        parameter.accumulates = False
    marked = [name for name, p in in_place.chunks[0].named_parameters() if getattr(p, "accumulates", False)]
    assert len(marked) == 4 * 4 + (1 if tied else 2)
    first, second = program.iterate(plain, 0, 4), program.iterate(in_place, 0, 4)
    assert [a["grad_norm"] for a in first] == pytest.approx([b["grad_norm"] for b in second], abs=1e-6)


def test_clipping_caps_the_norm_and_zero_means_none(program: ModuleType) -> None:
    free, capped = (program.run_config(train={"clip_grad": value, "adam_eps": 1.0}) for value in (0.0, 0.1))
    first, second = program.started(free), program.started(capped)
    a, b = program.iterate(first, 0, 1)[0], program.iterate(second, 0, 1)[0]
    assert a["grad_norm"] == b["grad_norm"] > 0.1
    assert not torch.equal(total(first), total(second))

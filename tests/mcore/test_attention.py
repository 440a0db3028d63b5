from __future__ import annotations

import itertools
import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("alone")


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention as its definition says, with an explicit mask and a key for each query head."""
    copies = query.size(1) // key.size(1)
    key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.size(-1))
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value


@pytest.mark.parametrize(("groups", "heads"), [(2, 2), (4, 1), (1, 4)])
def test_grouped_queries_give_what_the_definition_gives(program: ModuleType, groups: int, heads: int) -> None:
    model = {"num_attention_heads": groups * heads, "num_query_groups": groups}
    parts = program.started(program.run_config(model=model))
    attention = next(m for m in parts.chunks[0].modules() if type(m).__name__ == "CausalSelfAttention")
    torch.manual_seed(0)
    inputs = [
        torch.randn(3, n, 9, 32 // (groups * heads), requires_grad=True) for n in (groups * heads, groups, groups)
    ]
    ours, plain = attention._attend(*inputs), plain_attention(*inputs)
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)
    gradient = torch.randn_like(ours)
    for pair in zip(*(torch.autograd.grad(out, inputs, gradient) for out in (ours, plain)), strict=True):
        torch.testing.assert_close(*pair, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", ["sequential", "parallel"])
def test_isolated_documents_give_what_each_gives_alone(program: ModuleType, block: str) -> None:
    from megacode.mcore.step import evaluate

    config = program.run_config(model={"block": block}, train={"isolate_documents": True})
    parts = program.started(config)
    batch = program.microbatch(0, 1, isolated=True)
    batch.loss_mask = torch.ones_like(batch.loss_mask)
    together = evaluate(parts, [batch], 2)
    tokens, labels = batch.tokens.flatten(), batch.labels.flatten()
    alone, borders = 0.0, batch.cu_seqlens.tolist()
    for start, end in itertools.pairwise(borders):
        piece = tokens[None, start:end], labels[None, start:end]
        document = program.Batch(*piece, torch.ones(1, end - start), None, None, torch.tensor([0]), torch.tensor([0]))
        alone += sum(evaluate(parts, [document], 2).loss_sum)
    assert sum(together.loss_sum) == pytest.approx(alone, abs=2e-4)
    assert sum(together.loss_sum) / together.tokens[0] == pytest.approx(alone / together.tokens[0], abs=2e-6)
    batch.cu_seqlens = None
    assert abs(sum(evaluate(parts, [batch], 2).loss_sum) - alone) > 1e-2


def test_one_document_that_fills_the_sequence_is_plain_attention(program: ModuleType) -> None:
    from megacode.mcore.step import evaluate

    parts = program.started(program.run_config())
    batch = program.microbatch(0, 0)
    plain = evaluate(parts, [batch], 2)
    batch.cu_seqlens = torch.tensor([0, program.SEQ_LENGTH, 2 * program.SEQ_LENGTH], dtype=torch.int32)
    assert evaluate(parts, [batch], 2).loss == pytest.approx(plain.loss, abs=1e-6)


def test_positions_restart_in_each_document() -> None:
    from megacode.mcore.attention import documents
    from megacode.mcore.context import Stretch

    packed = documents(torch.tensor([0, 3, 4, 8], dtype=torch.int32))
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert packed.stretches == (Stretch((3, 1, 4), 0, (3, 1, 4)),)
    assert packed.max_seqlen_q == 4
    assert packed.qkv_format == "thd"


def test_the_rotary_table_holds_each_angles_cosine_and_sine(program: ModuleType) -> None:
    from megacode.mcore.rotary import RotaryTable

    table = RotaryTable(program.run_config(model={"kv_channels": 6, "rotary_base": 100.0}).model, torch.float32)
    short, long = table(3), table(5)
    assert torch.equal(long[:3], short)
    angle = 4 * 100.0 ** (-2 / 6)
    cos, sin = math.cos(angle), math.sin(angle)
    assert long[4].tolist()[1::3] == pytest.approx([cos, cos, -sin, sin])


def test_attention_dropout_drops_in_training_and_repeats_with_the_seed(program: ModuleType) -> None:
    dropping = {"model": {"attention_dropout": 0.5}}
    first, again, undropped = (
        program.iterate(program.started(program.run_config(**case)), 0, 1) for case in (dropping, dropping, {})
    )
    assert first == again
    assert first[0]["loss"] != undropped[0]["loss"]

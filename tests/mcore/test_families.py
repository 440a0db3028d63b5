"""Each family of models computes here what transformers' own class computes: losses and every gradient, in fp32."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.mcore import families
from tests.mcore.families import FAMILIES

pytestmark = pytest.mark.usefixtures("alone")
Z_LOSS = 0.01
# A setting of a family that is slightly wrong.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {"sliding_window": 8}),
    ("mistral", {"attention_pattern": ["sliding", "full"]}),
    ("qwen2", {"rotary_scaling": {"kind": "yarn", "factor": 4, "original_length": 64, "beta_fast": 8}}),
    ("llama", {"rotary_scaling": None}),
    ("olmo3", {"rotary_scaling": {**FAMILIES["olmo3"][2]["rotary_scaling"], "layers": "all"}}),
    ("smollm3", {"rotary_pattern": ["rotary", "none"]}),
    ("cohere", {"logit_scale": 0.31}),
    ("cohere", {"qk_norm": "across_heads"}),
    ("stablelm", {"rotary_percent": 0.5}),
]


def started(program: ModuleType, family: str, weights: dict[str, Tensor], **changes: Any) -> Any:
    """Return a run with the family's model and some weights."""
    from megacode.mcore.sharding import bare

    shape = {"num_layers": families.LAYERS, "hidden_size": families.HIDDEN, "ffn_hidden_size": families.MLP}
    model = {**shape, "layernorm_epsilon": 1e-4, **FAMILIES[family][2], **changes}
    rank_model = program.started(program.run_config(model=model, train={"z_loss": Z_LOSS}))
    own = dict(bare(rank_model.chunks[0]).named_parameters())
    assert set(weights) == set(own)
    with torch.no_grad():
        for name, weight in weights.items():
            own[name].zero_()[: len(weight)] = weight
    return rank_model


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_transformers(program: ModuleType, family: str) -> None:
    from megacode.mcore.sharding import bare
    from megacode.mcore.step import backward

    theirs = families.theirs(family)
    rank_model = started(program, family, families.weights(family, theirs))
    batch = program.microbatch(0, 0)
    mean, trained_on = families.loss(theirs, batch.tokens, batch.labels, batch.loss_mask, Z_LOSS)
    trained_on.backward()
    found = backward(rank_model, [batch], program.SOURCES)
    tokens = sum(found.tokens)
    assert found.loss == pytest.approx(mean.item(), rel=2e-6)
    assert found.z_loss_sum / tokens == pytest.approx((trained_on - mean).item(), rel=1e-5)
    own = dict(bare(rank_model.chunks[0]).named_parameters())
    for name, gradient in families.gradients(family, theirs).items():
        difference = (own[name].main_grad[: len(gradient)] / tokens - gradient).norm() / gradient.norm()
        assert difference < 2e-5, name


@pytest.mark.parametrize(("family", "wrong"), WRONG)
def test_the_comparison_can_fail(program: ModuleType, family: str, wrong: dict[str, Any]) -> None:
    from megacode.mcore.step import evaluate

    theirs, batch = families.theirs(family), program.microbatch(0, 0)
    mean, _ = families.loss(theirs, batch.tokens, batch.labels, batch.loss_mask, Z_LOSS)
    rank_model = started(program, family, families.weights(family, theirs), **wrong)
    assert abs(evaluate(rank_model, [batch], program.SOURCES).loss - mean.item()) > 5e-5

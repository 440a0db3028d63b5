"""Writes the small checkpoints in tests/convert/saved, one of each format that Megatron-core has saved.

    PYTHONPATH=DIRECTORY_OF_A_RELEASE:. python tests/convert/saved_program.py

writes `mcore-RELEASE`, a GPTModel, and with 0.19 also `hybrid`, a HybridModel. DIRECTORY_OF_A_RELEASE is where
`pip install --target` has put another release than the installed one. Beside each GPTModel are the logits that its own
model computes.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
SAVED = Path(__file__).with_name("saved")
SHAPE = {"num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 2, "num_query_groups": 1}


def hybrid() -> Any:
    """Return mcore's HybridModel of one attention layer and one MLP."""
    from megatron.core.models.hybrid import hybrid_block
    from megatron.core.models.hybrid.hybrid_model import HybridModel
    from megatron.core.ssm.mlp_layer import MLPLayer
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer import ModuleSpec
    from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

    from tests.convert import megatron_program

    hybrid_block.TENorm = WrappedTorchNorm  # the stack knows only Transformer Engine's, which a CPU does not have
    projections = {"linear_qkv": ColumnParallelLinear, "linear_proj": RowParallelLinear}
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(**projections, core_attention=DotProductAttention),
    )
    halves = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    stack = hybrid_block.HybridStackSubmodules(
        attention_layer=ModuleSpec(
            module=TransformerLayer,
            submodules=TransformerLayerSubmodules(input_layernorm=WrappedTorchNorm, self_attention=attention),
        ),
        mlp_layer=ModuleSpec(
            module=MLPLayer,
            submodules=TransformerLayerSubmodules(
                pre_mlp_layernorm=WrappedTorchNorm, mlp=partial(MLP.as_mlp_submodule, submodules=halves)
            ),
        ),
    )
    spec = ModuleSpec(module=hybrid_block.HybridStack, submodules=stack)
    config = megatron_program.mcore_config(1, SHAPE)
    return HybridModel(config, spec, 64, 64, hybrid_layer_pattern="*-", position_embedding_type="rope")


def write() -> None:
    """Write what the release that is imported can write."""
    from megatron.core import dist_checkpointing

    from megacode.base.ports import free_port
    from megacode.config.training import Parallel
    from megacode.mcore import groups
    from tests.convert import megatron_program

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    release = metadata.version("megatron-core")
    megatron_program.save(str(SAVED / f"mcore-{release}" / "iter_0000005"), shape=SHAPE)
    os.environ["MASTER_PORT"] = str(free_port())
    if release.startswith("0.19."):
        directory = SAVED / "hybrid" / "iter_0000005"
        directory.mkdir(parents=True)
        groups.start(Parallel(), 1)
        # As Megatron-LM's pretrain_hybrid.py names the layers.
        arguments = {**megatron_program.ARGUMENTS, **SHAPE, "hybrid_layer_pattern": "*-"}
        state = {**hybrid().sharded_state_dict(), "args": Namespace(**arguments), "iteration": 5}
        dist_checkpointing.save(state, str(directory))
        groups.stop()


if __name__ == "__main__":
    write()

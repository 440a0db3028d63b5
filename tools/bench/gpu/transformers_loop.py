"""A plain loop: transformers' Cohere (parallel block, tied embeddings) in bf16, compiled, with torch's fused AdamW.

Parameters and Adam's moments are bf16, which no careful run would do: it saves the loop the traffic of fp32 masters, so
that what is measured is faster than what could be trusted. Blocks and loss are compiled, each block's code once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from gpu.measure import SEQ_LENGTH, shape


def build(preset: str, micro: int, name: str) -> Any:
    """Return a function that trains one step and returns its loss."""
    from transformers import CohereConfig, CohereForCausalLM

    model, vocabulary = shape(preset)
    config = CohereConfig(
        vocab_size=vocabulary,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.query_groups,
        max_position_embeddings=SEQ_LENGTH,
        logit_scale=1.0,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    # Made in bf16 on the GPU at once: a cast later would hold both copies.
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        net = CohereForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    net.train()
    # Layers share their code, so torch may count each one as a recompilation. It stops at 8 by default.
    torch._dynamo.config.recompile_limit = 64
    for layer in net.model.layers:
        layer.compile()
    adam = torch.optim.AdamW(net.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    # Uncompiled, the fp32 logits of one sequence would be written out: 7.8 GiB.
    @torch.compile
    def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    def step(batches: list[torch.Tensor]) -> float:
        total = torch.zeros((), device="cuda")
        for batch in batches:
            batch = batch.cuda(non_blocking=True)
            loss = loss_of(net(input_ids=batch[:, :-1]).logits, batch[:, 1:]) / len(batches)
            # Gradients add up in bf16 too, which loses bits. megacode adds them in fp32.
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        # The one wait for the GPU in a step, as in the other loops.
        return total.item()

    return step

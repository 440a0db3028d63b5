"""Switch the number format of the blocks' matrix products; a run does so between iterations.

mcore and our layers read mcore's config in every forward pass. All modules of a chunk share that config, so changing
it switches the format. Weights, gradients and the optimizer's state are not affected.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from megacode.config.training import Fp8
from megacode.mcore import fp8_emulation, te, translate
from megacode.mcore.rank_model import RankModel
from megacode.mcore.sharding import bare


def use(rank_model: RankModel, recipe: Fp8 | None) -> None:
    """Compute the blocks' matrix products in FP8 by a recipe, or without FP8.

    Args:
        rank_model: of `build`.
        recipe: one of the run's recipes, which `te.problems` has checked; or None.
    """
    for chunk in rank_model.chunks:
        config = bare(chunk).config
        if te.used(rank_model.config):
            for name, value in translate.mcore_recipe(recipe).items():
                setattr(config, name, value)
            # Not a field of mcore's: it has no FP8 output layer. `te_layers.EngineOutputLayer` reads it.
            config.fp8_output_layer = recipe is not None and recipe.output_layer
        else:
            config.emulated_fp8 = recipe


def emulated(config: Any, layer_number: int) -> Any:
    """Return the context of a block's forward pass: emulated FP8 if the block computes in it, else a null context.

    Args:
        config: mcore's, shared by the chunk's modules.
        layer_number: of the block in the whole model, from 1.
    """
    recipe: Fp8 | None = getattr(config, "emulated_fp8", None)
    if recipe is None:
        return nullcontext()
    # The same rule as mcore's `first_last_layers_bf16`, which works with Transformer Engine's layers only.
    first, last = recipe.num_layers_at_start_in_bf16, config.num_layers - recipe.num_layers_at_end_in_bf16
    return fp8_emulation.region(recipe) if first < layer_number <= last else nullcontext()


def emulated_output(config: Any) -> Any:
    """Return the context of the output layer's product: emulated FP8 if the recipe says so, else a null context."""
    recipe: Fp8 | None = getattr(config, "emulated_fp8", None)
    if recipe is None or not recipe.output_layer:
        return nullcontext()
    # Always with current scales, whatever the blocks use: as `te_layers.EngineOutputLayer` does on a GPU.
    return fp8_emulation.region(recipe.model_copy(update={"recipe": "tensorwise"}))


def blocks(chunks: Sequence[Any]) -> list[Any]:
    """Return the transformer blocks of this rank's chunks."""
    return [block for chunk in chunks for block in bare(chunk).decoder.layers]

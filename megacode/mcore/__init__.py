"""Floor 4: the only package that imports Megatron-core and Transformer Engine."""

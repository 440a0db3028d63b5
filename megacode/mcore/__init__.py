"""F4: the one door to Megatron-core and Transformer Engine."""

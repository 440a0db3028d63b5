"""F7: checkpoints to Hugging Face models and back, and from Megatron-LM, with proof."""

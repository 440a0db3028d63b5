"""F5: checkpoints to Hugging Face models, with proof."""

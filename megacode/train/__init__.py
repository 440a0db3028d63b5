"""F7: from a config to a trained checkpoint."""

"""F5: from a config to a trained checkpoint."""

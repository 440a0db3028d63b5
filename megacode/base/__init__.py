"""F0: errors, files, logs and units. Knows nothing of models, data or torch."""

"""F0: errors, files, logs and units. Independent of models, data and torch."""

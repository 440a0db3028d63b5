"""F1: the schema of a run: validated once, then frozen. Never imports torch."""

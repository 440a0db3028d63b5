"""F1: the schema of a run, frozen and validated once. Never imports torch."""

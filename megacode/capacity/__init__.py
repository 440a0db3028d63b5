"""F3: memory, time, layouts and traffic of a run on a number of GPUs. Never imports torch."""

"""F3: what a run needs on a number of GPUs: memory, time, layouts, traffic. Never imports torch."""

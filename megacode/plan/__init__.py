"""F2: the order of data as pure arithmetic: samples, batches, learning rates. Never imports torch."""

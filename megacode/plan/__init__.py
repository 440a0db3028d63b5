"""F2: pure arithmetic on the config: which sample, which learning rate, what it costs. Never imports torch."""

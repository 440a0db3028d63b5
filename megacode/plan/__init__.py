"""F2: the order of data as pure arithmetic: which sample, which batch, which learning rate. Never imports torch."""

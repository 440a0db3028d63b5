"""Floor 12: laws of data mixtures, and the blends that they propose. Plain arrays in and out; never imports torch."""

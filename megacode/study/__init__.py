"""F7: a study: arms, scales and seeds in one file, and the tree of training that they share. Never imports torch."""

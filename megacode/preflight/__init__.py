"""F7: the health of every node, checked before a run starts."""

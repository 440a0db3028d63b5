"""F8: one iteration of a run trained again in memory, and compared with what was recorded."""

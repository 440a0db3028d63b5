"""F8: starting processes, and recording what was started."""

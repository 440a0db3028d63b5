"""F6: starting processes, and recording what was started."""

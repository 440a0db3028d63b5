"""F5: what is measured each iteration, and where it is written."""

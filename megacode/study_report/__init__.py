"""The report of a study: what its scores say, how surely, and how it came about."""

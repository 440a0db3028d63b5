"""F5: the measurements of a run: records, their files, and reading them."""

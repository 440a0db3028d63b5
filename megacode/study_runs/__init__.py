"""The execution of a study: which runs it still needs, running them here, and where each of them is."""

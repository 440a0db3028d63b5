"""Charts of a study, drawn from plain values: each module draws one kind and knows nothing of files."""

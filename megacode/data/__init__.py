"""F5: indexed datasets, windows, tokenizers, preprocessing and the loader."""

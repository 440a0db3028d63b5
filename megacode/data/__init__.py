"""F4: indexed datasets, windows, tokenizers, preprocessing and the loader."""

"""The families of Hugging Face models that megacode reads and writes: one table each, in `table`."""

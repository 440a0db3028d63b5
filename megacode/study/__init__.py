"""F7: questions across runs, and the pages that answer them."""

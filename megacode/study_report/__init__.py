"""What a study says once its arms are scored: comparisons, pages, and the next mixture. Never imports torch."""

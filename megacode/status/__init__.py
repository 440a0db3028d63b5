"""A run's progress, its incidents, and how its time was spent. Never imports torch."""

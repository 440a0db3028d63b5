"""Floor 10: paired differences of score files, with their uncertainty. Never imports torch."""

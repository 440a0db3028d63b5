"""F9: win-rates: which of two models answers prompts better, in the eyes of a third."""

"""F8: scores of exported models."""

"""F6: scores of exported models."""

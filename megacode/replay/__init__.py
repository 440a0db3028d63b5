"""Recompute one iteration of a run in memory, and compare it with its record."""

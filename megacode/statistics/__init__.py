"""F10: what is compared with what, and how sure: paired differences of score files. Never imports torch."""

"""megacode: a distributed trainer for language models whose data blend changes per phase."""

__version__ = "0.1.0"

"""F5: what a checkpoint holds, and how it is published and found."""

"""F5: checkpoints: their files, publishing, finding, reading and writing."""

"""What is compared with what, and how sure: paired differences of score files, with intervals that hold together."""

"""What is wrong with a net that does not train, where, since when, and what to try."""

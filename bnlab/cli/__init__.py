"""The command line: it knows everything, nothing knows it."""

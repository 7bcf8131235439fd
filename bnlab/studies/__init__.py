"""Studies: a grid of runs, each in a process of its own, that survives being killed."""

"""The common ground of the callbacks and their recorders."""

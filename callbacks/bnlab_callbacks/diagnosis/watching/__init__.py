"""The watch that a diagnosis keeps on a run."""

"""What a diagnosis watches in a run."""

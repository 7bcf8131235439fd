"""Recorders of what one training step leaves, for any training loop, with torch alone."""

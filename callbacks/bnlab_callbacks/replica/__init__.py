"""A training step that can be run again, and what is measured with it."""

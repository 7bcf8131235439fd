"""Checkpoints, and everything that makes a run go on from one as if it had never stopped."""

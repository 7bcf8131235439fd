"""Checkpoints, and all that lets a run resume from one as if it had never stopped."""

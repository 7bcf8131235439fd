"""Runs read from disk: their results, their records, and all runs below some folders."""

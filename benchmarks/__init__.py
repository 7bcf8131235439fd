"""Measurements of accuracy, cost and endurance, each started by `python -m benchmarks.<name>` in a checkout."""

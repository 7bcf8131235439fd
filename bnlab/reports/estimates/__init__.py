"""Test accuracies and epoch times over seeds, with 95 % intervals, beside the thesis's numbers."""

"""The thesis as data: its experiments, its numbers, its figures."""

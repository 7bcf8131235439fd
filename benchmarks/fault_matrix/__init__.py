"""Faults on purpose in small trainings, and the diagnosis's word on each."""

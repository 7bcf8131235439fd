"""Rules as pure functions of a run's history."""

"""Files that are there whole or not at all, YAML that may be broken, and the lock on a run's folder."""

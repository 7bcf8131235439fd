"""The judge of a run: rules asked step by step, the life of each finding, and which finding explains which."""

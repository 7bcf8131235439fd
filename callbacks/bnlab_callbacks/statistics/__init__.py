"""Pure functions of tensors: the mathematics of the diagnostics."""

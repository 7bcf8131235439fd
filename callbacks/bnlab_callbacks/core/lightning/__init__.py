"""Everything that knows Lightning, but for the callbacks themselves."""

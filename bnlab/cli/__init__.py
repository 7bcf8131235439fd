"""The command line: it imports every other room, and none imports it."""

"""What the callbacks and their recorders share."""

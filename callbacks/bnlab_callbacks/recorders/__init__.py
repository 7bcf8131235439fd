"""What one training step leaves, as tensors on their device; made for any loop, with torch alone."""

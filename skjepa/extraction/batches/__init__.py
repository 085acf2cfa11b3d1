"""Load, transform, size and measure one batch at a time."""

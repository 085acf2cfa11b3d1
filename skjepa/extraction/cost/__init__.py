"""Estimate how long a run will take before it starts, and choose the number of backward passes."""

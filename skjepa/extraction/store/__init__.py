"""Finished samples on disk."""

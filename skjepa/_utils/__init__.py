"""Helpers for all other folders: checks, files, hardware, statistics. Imports nothing else of the package."""

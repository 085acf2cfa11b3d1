"""Ground that every folder may stand on: checks, files, hardware, statistics; imports nothing of the package."""

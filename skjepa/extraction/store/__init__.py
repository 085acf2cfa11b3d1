"""Keep finished samples on disk, so that a run can resume."""

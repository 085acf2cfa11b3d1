"""The same pass in other processes."""

"""One batch at a time: loading, views, sizes, measurement."""

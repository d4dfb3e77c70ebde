"""Motion of specimens during a movie: found by correlation, undone by interpolation, weighted."""

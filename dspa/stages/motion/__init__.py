"""Motion correction of movies."""

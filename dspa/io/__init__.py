"""One file per format; the only place with degrees, pixels and other programs' names."""

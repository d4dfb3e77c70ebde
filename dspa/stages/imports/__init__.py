"""What a project begins with: micrographs, movies, particles, picks and maps of others."""

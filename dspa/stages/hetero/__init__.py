"""Several maps of one set of particles: heterogeneous refinement."""

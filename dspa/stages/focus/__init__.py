"""Part of a particle on its own: subtraction of the rest, and local refinement."""

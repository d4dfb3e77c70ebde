"""Particle images cut out of micrographs."""

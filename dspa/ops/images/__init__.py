"""Particle images and pieces of micrographs."""

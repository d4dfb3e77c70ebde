"""Rotations, symmetry groups, orientation grids and Fourier bands: pure functions."""

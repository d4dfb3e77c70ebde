"""Slices of references, sums of images on Fourier grids, and what is solved from them."""

"""Refinement of the optics against a map: defocus, astigmatism, aberrations, magnification."""

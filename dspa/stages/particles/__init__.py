"""Particle images as every stage reads them, and what is done to sets of them."""

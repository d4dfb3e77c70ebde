"""Simulated densities and images, and agreement with their truth."""

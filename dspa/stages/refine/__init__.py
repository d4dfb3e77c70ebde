"""Homogeneous refinement and post-processing."""

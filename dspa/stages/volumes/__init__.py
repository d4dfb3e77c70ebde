"""Masks and tools for maps."""

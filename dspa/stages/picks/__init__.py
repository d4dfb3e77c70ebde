"""Picking, and the choice among picks."""

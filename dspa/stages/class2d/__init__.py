"""2D classification and the choice of its classes."""

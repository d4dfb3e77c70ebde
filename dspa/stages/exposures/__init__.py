"""What is estimated for micrographs, and the choice among them."""

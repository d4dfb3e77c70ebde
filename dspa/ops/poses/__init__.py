"""Images compared with references over lattices of poses."""

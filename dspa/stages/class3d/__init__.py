"""Several maps of particles whose poses are known: 3D classification without alignment."""

"""dspa: distributed single-particle analysis, from cryo-electron micrographs to maps."""

__version__ = "0.1.0"

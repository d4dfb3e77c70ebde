"""How work spreads: reductions, runners, clusters, checkpoints, events."""

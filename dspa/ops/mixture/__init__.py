"""Images at known poses against several maps: overlaps, weights, evidence, a first grouping."""

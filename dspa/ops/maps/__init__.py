"""Maps: alignment, correlation, masks, resolution, sharpening."""

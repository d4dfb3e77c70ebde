"""The contrast transfer function and its estimation."""

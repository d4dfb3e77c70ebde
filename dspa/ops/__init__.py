"""What is computed on plain arrays: arrays in, arrays out."""

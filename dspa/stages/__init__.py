"""One module per step a user can name."""

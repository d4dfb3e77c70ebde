"""A checkpoint, as a pass leaves it."""


def save(checkpoints, name, model, rows=None):
    """Store arrays under a name and wait for the disk."""
    stored = checkpoints.store(rows or {}, prefix="rows")
    checkpoints.record(name, checkpoints.store(model), stored)
    checkpoints.settle()

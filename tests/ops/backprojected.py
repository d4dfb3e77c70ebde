"""Slices added to an accumulator by the path that images take."""

import numpy as np

from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.score import split
from dspa.ops.sums.fixed import as_float, fixed_point_scale, largest_entries
from dspa.ops.sums.insert import insert_candidates, unmoved
from dspa.ops.sums.project import frames_of


def insert_slices(target, rotations, numerators, *, weights, band):
    """Add posterior * X * CTF / s2 and posterior * CTF^2 / s2 of each pose, (P, f) both."""
    number = np.arange(len(rotations), dtype=np.int32)
    still = np.zeros_like(number)
    frames = frames_of(rotations, padding=target.padding)
    scale = fixed_point_scale(float(largest_entries(numerators, weights).sum()))
    fixed = np.zeros(target.sums.shape, np.int64)
    insert_candidates(
        fixed[None], still, Candidates(number, still, number, still),
        weight=np.ones(number.size, np.float32), frames=lambda pose: frames[pose],
        phases=unmoved(weights.shape[-1], reference=weights), row=still,
        y=split(np.conj(numerators)), c2=np.asarray(weights, np.float32), band=band, scale=scale,
    )  # fmt: skip
    target.sums[...] += as_float(fixed, scale)

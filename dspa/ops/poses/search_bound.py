"""How far below the best a candidate pose may lie and still win.

After a level the score is known over |k| <= r for the centre of a cell. Two things can still
change it, both stated by the model's power per shell:

* The unseen shells r < |k| <= L. With X = C A* + noise, their part of the score is at most
  ``T = sum C2 P_max`` (over the half plane; P_max the largest slice power of the model in the
  shell) plus noise, Gaussian with variance ``2 T``: at most ``T + n_sigma sqrt(2 T)``. A model of
  nothing scores 0 there, so what the winner gains there is taken as at least 0.
* The cell: its best point scores more than its centre, on average by
  ``E = sum C2 |A(centre) - A(point)|^2`` over the seen shells, measured on the model by turning and
  shifting slices by half a cell.

The bound is their sum. The derivation follows Punjani et al. 2017, https://doi.org/10.1038/nmeth.4169.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.geometry.rotation import matrix_from_rotvec, random_rotations
from dspa.ops.sums.project import project

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dspa.geometry.band import Band
    from dspa.ops.poses.pose_search import Level
    from dspa.ops.sums.project import Reference

SAMPLES = 96  # slices that the power of a model is measured on


@dataclass(frozen=True, eq=False)
class SearchBound:
    """Slack of each level, from shell sums of C2.

    Attributes
    ----------
    unseen : (levels, radius + 1) float32
        P_max in the shells beyond each level's radius, 0 in the others.
    cell : (levels, radius + 1) float32
        Mean |A(centre) - A(point)|^2 in the shells a level has seen, 0 in the others.
    deviations : float
        n_sigma.
    """

    unseen: NDArray[np.float32]
    cell: NDArray[np.float32]
    deviations: float = 3.0

    def slack(self, level: int, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the slack of images after a level.

        Parameters
        ----------
        level : int
        weight : (n, radius + 1) float32
            Sums of C2 over the half-plane coefficients of each shell.

        Returns
        -------
        (n,) float32
            In units of log-likelihood.
        """
        tail = weight @ self.unseen[level]
        inside = weight @ self.cell[level]
        # The centre's own score wobbles too: what it loses is Gaussian about its mean.
        wobble = self.deviations * np.sqrt(2.0 * (tail + inside))
        return np.asarray(tail + inside + wobble, np.float32)


def shell_sums(values: NDArray[np.float32], band: Band) -> NDArray[np.float32]:
    """Add up the coefficients of each shell: (n, f) -> (n, radius + 1)."""
    edges = np.searchsorted(band.shell, np.arange(1, band.radius + 1))
    sums = np.add.reduceat(values, edges, axis=-1)
    return np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)


def measure_bound(
    reference: Reference, levels: Sequence[Level], *, band: Band, seed: int = 0
) -> SearchBound:
    """Measure a model for its search bound.

    Parameters
    ----------
    reference : Reference
        The model out to the radius of the last level.
    levels : sequence of Level
    band : Band
        Of the images; the last level's radius or more.
    seed : int
        Of the directions that are sampled.
    """
    shells = band.radius + 1
    last = levels[-1].radius
    size = band.size(last)
    members = np.maximum(np.bincount(band.shell[:size], minlength=shells), 1)
    poses = random_rotations(SAMPLES, seed=[seed, 7])
    slices = _slices(reference, poses, band, last)
    power = shell_sums(np.abs(slices) ** 2, band)[:, :shells] / members
    largest = power.max(axis=0)
    axes = np.random.default_rng([seed, 8]).standard_normal((SAMPLES, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    shell = np.arange(shells)
    unseen, cell = np.zeros((2, len(levels), shells), np.float32)
    for number, level in enumerate(levels):
        half = np.pi / (6 << level.order)
        turned = _slices(reference, matrix_from_rotvec(axes * half) @ poses, band, last)
        turn_loss = (shell_sums(np.abs(turned - slices) ** 2, band) / members).mean(axis=0)
        # A shift by a quarter of the cell's edge along each axis, the mean distance in a square.
        angle = 2.0 * np.pi * shell * 0.38 * level.shift_step / band.box
        shift_loss = power.mean(axis=0) * 2.0 * (1.0 - np.sinc(angle / np.pi * np.sqrt(0.5)))
        seen = (shell <= level.radius) & (shell >= 1)
        cell[number] = np.where(seen, np.minimum(turn_loss + shift_loss, 2.0 * power.mean(0)), 0.0)
        unseen[number] = np.where((shell > level.radius) & (shell <= last), largest, 0.0)
    return SearchBound(unseen, cell)


def _slices(
    reference: Reference, poses: NDArray[np.float64], band: Band, radius: int
) -> NDArray[np.complex64]:
    """Slice at poses out to a radius, zero beyond: (s, f)."""
    from dspa.geometry.band import band as make_band

    inner = make_band(band.box, radius)
    slices = np.zeros((len(poses), band.count), np.complex64)
    slices[:, : inner.count] = project(reference, poses, inner)
    return slices

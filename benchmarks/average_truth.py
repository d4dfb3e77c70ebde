"""How like the true molecule class averages are: each against its best true projection.

An average is turned, moved and compared with projections of the density it was made from. The best
of many random views at every in-plane angle and shift is found by matrix products, and the best few
are followed uphill over all five parameters of the pose, so that neither the grid nor where a
program centres its averages matters. What is compared is the mean ring correlation: scale and
filter of an average make no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from dspa.geometry.band import Band, band
from dspa.geometry.rotation import matrix_from_euler, matrix_from_rotvec, random_rotations
from dspa.ops.images.noise import shell_mean, spread_shells
from dspa.ops.images.transform import images_to_band, shift_phases
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.sums.project import Reference, prepare_volume, project

VIEWS, TURNS = 500, 60  # of the grid: random views, in-plane angles
REACH = 5  # pixels that an average may lie off the centre
COARSE = 12  # Fourier pixels of the grid search
FOLLOWED = 4  # views of the grid that are followed
STRETCH = 5.0  # pixels that change the fit about as much as a radian

Pose = tuple[NDArray[np.float64], NDArray[np.float64]]  # rotation (3, 3); shift (x, y), pixels


@dataclass(frozen=True, eq=False)
class Truth:
    """What averages are compared with.

    Attributes
    ----------
    volume : Reference
        The true density.
    plane : Band
        Coefficients that are compared.
    mask : (y, x) float32
        Laid over the averages: what is around the molecule is not judged.
    """

    volume: Reference
    plane: Band
    mask: NDArray[np.float32]

    @classmethod
    def of(
        cls, density: NDArray[np.float32], *, pixel_size: float, diameter: float, finest: float
    ) -> Truth:
        """Prepare a density.

        Parameters
        ----------
        density : (z, y, x) float32
        pixel_size, diameter, finest : float
            A: of a voxel; of the molecule; resolution to which averages are compared.
        """
        box = len(density)
        plane = band(box, min((box - 1) // 2, round(box * pixel_size / finest)))
        ball = soft_sphere(box, diameter / 2, pixel_size=pixel_size, edge=3 * pixel_size)
        return cls(prepare_volume(density, plane.radius), plane, ball[box // 2])

    def masked(self, averages: NDArray[np.float32]) -> NDArray[np.complex64]:
        """Mask averages, their background at 0, and transform them: (classes, f)."""
        rim = (self.mask > 0) & (self.mask < 1)
        level = averages[:, rim].mean(axis=1)[:, None, None]
        return np.asarray(images_to_band((averages - level) * self.mask, self.plane))

    def curves(self, averages: NDArray[np.float32]) -> NDArray[np.float64]:
        """Ring correlation of each average with its best true projection.

        Parameters
        ----------
        averages : (classes, y, x) float32

        Returns
        -------
        (classes, radius + 1) float64
            Shell 0 is 1.
        """
        spectra = self.masked(averages)
        grid = matrix_from_euler(0.0, 0.0, np.arange(TURNS) * 2 * np.pi / TURNS)
        poses = grid[None] @ random_rotations(VIEWS, 1)[:, None]
        best = []
        for one, starts in zip(spectra, self._search(spectra, poses), strict=True):
            ends = [self._follow(one, *start) for start in starts]
            best.append(max(ends, key=lambda end: float(end[1:].mean())))
        return np.stack(best)

    def _search(
        self, spectra: NDArray[np.complex64], poses: NDArray[np.float64]
    ) -> Iterator[list[Pose]]:
        """Find for each average the best (rotation, shift) of the views that fit it best."""
        coarse = band(self.plane.box, min(COARSE, self.plane.radius))
        line = np.arange(-REACH, REACH + 1)
        shifts = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2).astype(np.float64)
        slices = project(self.volume, poses.reshape(-1, 3, 3), self.plane, count=coarse.count)
        parts = _evened(slices, coarse).view(np.float32)
        weight = 1.0 / np.bincount(coarse.shell)[coarse.shell] / coarse.radius
        # The average is moved back: by the conjugate of what moves a projection to it.
        back = np.conj(shift_phases(coarse, shifts)) * weight
        for one in spectra:
            moved = (_evened(one[None, : coarse.count], coarse) * back).astype(np.complex64)
            scores = (parts @ moved.view(np.float32).T).reshape(VIEWS, -1)
            order = np.argsort(-scores.max(axis=1))[:FOLLOWED]
            place = scores[order].argmax(axis=1)
            turn, shift = place // len(shifts), place % len(shifts)
            yield list(zip(poses[order, turn], shifts[shift], strict=True))

    def _follow(
        self, one: NDArray[np.complex64], rotation: NDArray[np.float64], shift: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Follow a pose uphill; return the curve at the end."""

        def curve(change: NDArray[np.float64]) -> NDArray[np.float64]:
            turned = matrix_from_rotvec(change[:3]) @ rotation
            moved = shift_phases(self.plane, shift + change[3:] * STRETCH)
            return ring(one, project(self.volume, turned[None], self.plane)[0] * moved, self.plane)

        end = minimize(
            lambda change: -float(curve(change)[1:].mean()),
            np.zeros(5),
            method="Nelder-Mead",
            options={
                "initial_simplex": np.vstack([np.zeros(5), 0.08 * np.eye(5)]),
                "maxfev": 250,
                "xatol": 2e-3,
                "fatol": 1e-4,
            },
        )
        return curve(np.asarray(end.x))


def ring(a: NDArray[np.complex64], b: NDArray[np.complex64], plane: Band) -> NDArray[np.float64]:
    """Ring correlation of two spectra: (radius + 1,) float64."""
    cross = np.asarray(shell_mean(np.real(a * np.conj(b)), plane), np.float64)
    power = shell_mean(np.abs(a) ** 2, plane) * shell_mean(np.abs(b) ** 2, plane)
    curve = cross / np.sqrt(np.maximum(np.asarray(power, np.float64), 1e-30))
    curve[0] = 1.0
    return np.asarray(curve)


def _evened(spectra: NDArray[np.complex64], plane: Band) -> NDArray[np.complex64]:
    """Give every shell of every spectrum the same power."""
    power = np.maximum(np.asarray(shell_mean(np.abs(spectra) ** 2, plane)), 1e-30)
    return np.asarray(spectra / np.sqrt(spread_shells(power, plane)), np.complex64)

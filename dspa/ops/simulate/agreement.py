"""How well results agree with a truth that is known: picks with places, a map with a density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from dspa.ops.images.transform import resize_volume
from dspa.ops.maps.align import Alignment, align, apply_alignment
from dspa.ops.maps.fsc import fsc, resolution_shell
from dspa.ops.maps.mask import dynamic_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMOOTH = 4.0  # A: standard deviation of the smoothing before the mask
_FINEST = 8.0  # A: detail that decides the alignment
_NEAR, _FAR = 10.0, 25.0  # A: the mask for the comparison, wide enough to add nothing by itself


@dataclass(frozen=True)
class Detection:
    """Counts of a comparison of points.

    Attributes
    ----------
    hits, found, true : int
        Pairs, points found, points that are there.
    """

    hits: int
    found: int
    true: int

    @property
    def precision(self) -> float:
        """Share of the found points that are true."""
        return self.hits / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Share of the true points that were found."""
        return self.hits / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.found + self.true
        return 2.0 * self.hits / total if total else 0.0

    def __add__(self, other: Detection) -> Detection:
        """Join the counts of two sets of points."""
        return Detection(self.hits + other.hits, self.found + other.found, self.true + other.true)


@dataclass(frozen=True, eq=False)
class MapAgreement:
    """Comparison of a map with the true density.

    Attributes
    ----------
    curve : (n // 2 + 1,) float64
        Fourier shell correlation by shell, shell 1 being 1 / (box * pixel_size).
    frequency : (n // 2 + 1,) float64
        1/A.
    resolution : float
        Where the curve falls below 0.5, A; the Nyquist period if it never does.
    aligned : (m, m, m) float32
        The map brought onto the truth, mirrored if need be, on the grid of ``truth``.
    truth : (m, m, m) float32
    pixel_size : float
        Of ``aligned`` and ``truth``, A.
    alignment : Alignment
        What took the map onto the truth.
    """

    curve: NDArray[np.float64]
    frequency: NDArray[np.float64]
    resolution: float
    aligned: NDArray[np.float32]
    truth: NDArray[np.float32]
    pixel_size: float
    alignment: Alignment


def match_points(
    found: NDArray[np.float64], true: NDArray[np.float64], *, radius: float
) -> Detection:
    """Pair found with true points, nearest first, each used once.

    Parameters
    ----------
    found : (n, 2) float64
        Points to judge.
    true : (m, 2) float64
        Points that are there.
    radius : float
        Largest distance of a pair.

    Returns
    -------
    Detection
    """
    if not len(found) or not len(true):
        return Detection(0, len(found), len(true))
    pairs = cKDTree(found).sparse_distance_matrix(cKDTree(true), radius, output_type="coo_matrix")
    free_found, free_true = np.ones(len(found), bool), np.ones(len(true), bool)
    hits = 0
    for at in np.argsort(pairs.data, kind="stable"):
        i, j = pairs.row[at], pairs.col[at]
        if free_found[i] and free_true[j]:
            free_found[i] = free_true[j] = False
            hits += 1
    return Detection(hits, len(found), len(true))


def inside(
    points: NDArray[np.float64], shape: tuple[int, int], *, margin: float
) -> NDArray[np.float64]:
    """Keep the points that are a margin away from every border.

    Parameters
    ----------
    points : (n, 2) float64
        x, y in pixels.
    shape : (y, x)
        Pixels.
    margin : float
        Pixels.

    Returns
    -------
    (m, 2) float64
    """
    limit = np.array([shape[1], shape[0]]) - 1.0 - margin
    return points[np.all((points >= margin) & (points <= limit), axis=1)]


def compare_with_truth(
    density: NDArray[np.float32],
    truth: NDArray[np.float32],
    *,
    pixel_size: float,
    truth_pixel_size: float,
) -> MapAgreement:
    """Align a map with the true density, mirror allowed, and correlate them shell by shell.

    Both are brought to a grid twice as fine as the map's, so that turning costs nothing up to the
    map's Nyquist frequency, and are masked by the true density's own, widened envelope.

    Parameters
    ----------
    density : (n, n, n) float32
        The map.
    truth : (m, m, m) float32
        True density, of any box and pixel size.
    pixel_size, truth_pixel_size : float
        A.

    Returns
    -------
    MapAgreement
    """
    box = density.shape[0]
    fine, fine_size = 2 * box, 0.5 * pixel_size
    extent = round(box * pixel_size / truth_pixel_size)
    known = resize_volume(_boxed(truth, extent), fine)
    ours = resize_volume(density, fine)
    smooth = gaussian_filter(known, _SMOOTH / fine_size)
    mask = dynamic_mask(smooth, pixel_size=fine_size, near=_NEAR, far=_FAR)
    radius = min(box // 2 - 1, int(box * pixel_size / _FINEST))
    found = align(ours, known, radius=radius)
    aligned = apply_alignment(ours, found)
    curve = fsc(aligned, known, mask=mask)[: box // 2 + 1]
    frequency = np.arange(curve.size) / (box * pixel_size)
    shell = max(resolution_shell(curve, threshold=0.5), 1.0)
    resolution = max(box * pixel_size / shell, 2.0 * pixel_size)
    return MapAgreement(curve, frequency, resolution, aligned, known, fine_size, found)


def _boxed(density: NDArray[np.float32], box: int) -> NDArray[np.float32]:
    """Cut or pad with zeros about the centre n//2 to another box."""
    size = density.shape[0]
    result = np.zeros((box, box, box), np.float32)
    low = size // 2 - box // 2
    source = slice(max(low, 0), max(low, 0) + min(size, box))
    target = slice(max(-low, 0), max(-low, 0) + min(size, box))
    result[target, target, target] = density[source, source, source]
    return result

"""Coordinates of picks: as readers give them, and the pixels that they are counted in.

Every other program counts pixels of the micrograph; dspa has A. Where no pixel size is given none
is guessed: such coordinates stay in pixels (``coordinate_pixels``) until micrographs tell it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

_FARTHEST = 1e6  # pixels; wider than any micrograph


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Picks of one file.

    Attributes
    ----------
    x, y : (n,) float64
        Centres in pixels, from the centre of the first pixel, y down the rows.
    score, diameter : (n,) float64
        Figure of merit; diameter in pixels. NaN where the file does not say.
    micrograph : (n,) object or None
        Names, if the file has them.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    score: NDArray[np.float64]
    diameter: NDArray[np.float64]
    micrograph: NDArray[Any] | None


def on_micrographs(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return coordinates with NaN for those that no micrograph is large enough for.

    Parameters
    ----------
    pixels : array of float64
        Pixels of the micrograph.
    """
    return np.where(np.abs(pixels) <= _FARTHEST, pixels, np.nan)


def place_variables(
    pixels: NDArray[np.float64], size: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Return the variables that coordinates in pixels become.

    Parameters
    ----------
    pixels : (n, 2) float64
    size : (n,) float64
        Pixel size of the micrograph, A; NaN where it is unknown.

    Returns
    -------
    dict
        ``coordinate``, A, if any size is known; ``coordinate_pixels`` if any is not, NaN elsewhere.
        Coordinates beyond any micrograph are NaN in both.
    """
    known, pixels = np.isfinite(size), on_micrographs(pixels)
    made = {}
    if known.any() or not size.size:
        made["coordinate"] = pixels * size[:, None]
    if not known.all():
        made["coordinate_pixels"] = np.where(known[:, None], np.nan, pixels)
    return made


def pixel_coordinates(particles: xr.Dataset) -> NDArray[np.float64] | None:
    """Return coordinates in pixels of the micrographs, (n, 2) float64; None if there are none.

    Parameters
    ----------
    particles : Dataset

    Raises
    ------
    InputError
        If there are coordinates in A without the pixel size of the micrographs.
    """
    pixels = None
    if "coordinate" in particles.variables:
        if "micrograph_pixel_size" not in particles.variables:
            raise InputError(
                "the particles have a coordinate but no micrograph_pixel_size; give it, A, for "
                "each optics group"
            )
        size = np.asarray(particles["micrograph_pixel_size"].values, np.float64)
        size = size[particles["optics"].values]
        pixels = np.asarray(particles["coordinate"].values / size[:, None])
    if "coordinate_pixels" in particles.variables:
        counted = np.asarray(particles["coordinate_pixels"].values, np.float64)
        pixels = counted if pixels is None else np.where(np.isfinite(counted), counted, pixels)
    return pixels


def micrograph_pixel_sizes(particles: xr.Dataset) -> NDArray[np.float64]:
    """Return the pixel size that the coordinates of each particle are in, A; NaN where unknown.

    Parameters
    ----------
    particles : Dataset
    """
    if "micrograph_pixel_size" not in particles.variables:
        return np.full(particles.sizes["particle"], np.nan)
    size = np.asarray(particles["micrograph_pixel_size"].values, np.float64)
    return np.asarray(size[particles["optics"].values])


def place_of_uid(variables: Mapping[str, Any], count: int) -> NDArray[np.float64]:
    """Return what tells picks of one micrograph apart, (n, 2): coordinates, in whatever unit.

    Parameters
    ----------
    variables : mapping
        As `place_variables` returns them.
    count : int
        Picks.
    """
    nothing = np.full((count, 2), np.nan)
    place = np.asarray(variables.get("coordinate", nothing))
    counted = np.asarray(variables.get("coordinate_pixels", nothing))
    return np.where(np.isfinite(place), place, counted)

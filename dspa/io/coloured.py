"""Slices of a map painted by a figure that each voxel has, such as its resolution."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_NAMES = (("xy", "z"), ("xz", "y"), ("yz", "x"))


def coloured_slices(
    density: ArrayLike,
    values: ArrayLike,
    *,
    limits: tuple[float, float],
    label: str,
    beside: str,
    pixel_size: float = 1.0,
) -> bytes:
    """Draw three central slices coloured by a second map, over those of the map itself.

    Parameters
    ----------
    density : (z, y, x) array
    values : (z, y, x) array
        NaN is left grey.
    limits : (float, float)
        Values at the ends of the colour bar, blue and red.
    label : str
        Of the colour bar.
    beside : str
        What the density is.
    pixel_size : float
        A.

    Returns
    -------
    bytes
        A PNG.
    """
    # Matplotlib takes half a second to load, and workers import this module without drawing.
    from matplotlib.figure import Figure

    volume, paint = np.asarray(density, np.float32), np.asarray(values, np.float32)
    middle = tuple(n // 2 for n in volume.shape)
    low, high = np.percentile(volume, (0.5, 99.9))
    figure = Figure(figsize=(9.0, 6.2), dpi=110, layout="constrained")
    rows = figure.subplots(2, 3)
    for number, (plane, normal) in enumerate(_NAMES):
        cut = volume.take(middle[number], number)
        half = 0.5 * pixel_size * np.array(cut.shape)
        extent = (-half[1], half[1], half[0], -half[0])
        for axes in rows[:, number]:
            axes.imshow(cut, cmap="gray", vmin=low, vmax=high, extent=extent)
            axes.tick_params(labelsize=7, colors="#666666")
        painted = rows[0, number].imshow(
            paint.take(middle[number], number), cmap="turbo", vmin=limits[0], vmax=limits[1],
            extent=extent,
        )  # fmt: skip
        rows[0, number].set_title(f"{plane}, through the middle of {normal}", fontsize=9)
    rows[1, 1].set_title(beside, fontsize=9)
    figure.colorbar(painted, ax=list(rows[0]), shrink=0.85, label=label)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()

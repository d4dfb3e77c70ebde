"""Plots of results as Matplotlib figures, to change and to save: for notebooks and papers.

`dspa.io.picture` draws the same things to PNG for reports and pages.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.geometry.rotation import view_density

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

THRESHOLD = 0.143


def fsc(frequency: ArrayLike, curves: Mapping[str, ArrayLike], *, title: str = "") -> Figure:
    """Plot Fourier shell correlations, labelled with where each falls below 0.143.

    Parameters
    ----------
    frequency : (n,) array
        1/A.
    curves : mapping of name to (n,) array
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    shells = _array(frequency, "frequency", ("n",))
    known = _series(curves, "curves", shells.size)
    figure = _figure((6.0, 3.8))
    axes = figure.add_subplot()
    for name, values in known.items():
        axes.plot(shells, values, lw=1.6, label=name)
    axes.axhline(THRESHOLD, color="#777777", lw=0.8, ls="--")
    axes.text(shells[-1], THRESHOLD, " 0.143", va="center", fontsize=8, color="#777777")
    axes.set(xlabel="resolution (A)", ylabel="FSC", ylim=(-0.1, 1.05), title=title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{1 / value:.3g}" if value > 0 else "")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False, fontsize=9)
    return figure


def images(
    stack: ArrayLike, *, labels: Sequence[str] = (), columns: int = 10, title: str = ""
) -> Figure:
    """Plot images side by side, each in its own contrast.

    Parameters
    ----------
    stack : (n, y, x) array
    labels : sequence of str
        Over the images.
    columns : int
        Most images in a row.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    tiles = _array(stack, "stack", ("n", "y", "x")).astype(np.float32)
    if not isinstance(columns, int | np.integer):
        raise InputError(f"columns is {type(columns).__name__}; give a whole number")
    across = max(1, min(columns, len(tiles)))
    down = max(1, -(-len(tiles) // across))
    figure = _figure((1.1 * across, 1.25 * down + (0.3 if title else 0.0)))
    for number, tile in enumerate(tiles):
        axes = figure.add_subplot(down, across, number + 1)
        low, high = np.nanpercentile(tile, (1.0, 99.8)) if np.isfinite(tile).any() else (0, 1)
        axes.imshow(tile, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axes.set_axis_off()
        if number < len(labels):
            axes.set_title(labels[number], fontsize=6, pad=2)
    figure.suptitle(title, fontsize=10) if title else None
    return figure


def slices(density: ArrayLike, *, pixel_size: float = 1.0, title: str = "") -> Figure:
    """Plot the three central slices of a map, in A from its centre.

    Parameters
    ----------
    density : (z, y, x) array
    pixel_size : float
        A.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    values = _array(density, "density", ("z", "y", "x")).astype(np.float32, copy=False)
    if not isinstance(pixel_size, int | float | np.number):
        raise InputError(f"pixel_size is {type(pixel_size).__name__}; give a number, A")
    z, y, x = (size // 2 for size in values.shape)
    cuts = {("x", "y"): values[z], ("x", "z"): values[:, y], ("y", "z"): values[:, :, x]}
    low, high = np.percentile(values, (0.5, 99.9))
    figure = _figure((9.0, 3.3))
    for number, ((across, up), cut) in enumerate(cuts.items()):
        axes = figure.add_subplot(1, 3, number + 1)
        half = np.array(cut.shape) * pixel_size / 2.0
        axes.imshow(cut, cmap="gray", vmin=low, vmax=high, origin="lower",
                    extent=(-half[1], half[1], -half[0], half[0]))  # fmt: skip
        axes.set(xlabel=f"{across} (A)", ylabel=f"{up} (A)")
    figure.suptitle(title, fontsize=10) if title else None
    return figure


def views(directions: ArrayLike, *, title: str = "") -> Figure:
    """Plot where views come from, as density over the sphere in Mollweide's projection.

    Parameters
    ----------
    directions : (n, 3) array
        Unit vectors: the third rows of poses; those of `dspa.geometry.symmetry.views_around` for
        a symmetric map.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    unit = _array(directions, "directions", ("n", 3))
    figure = _figure((6.4, 3.6))
    axes = figure.add_subplot(projection="mollweide")
    mesh = axes.pcolormesh(*view_density(unit), cmap="magma", vmin=0.0)
    axes.set_xticks(np.radians([-120, -60, 0, 60, 120]))
    axes.tick_params(labelsize=7, colors="#666666")
    axes.set_title(title, fontsize=10, pad=12)
    figure.colorbar(mesh, ax=axes, shrink=0.8, label="density / uniform")
    return figure


def lines(x: ArrayLike, series: Mapping[str, ArrayLike], *, xlabel: str = "") -> Figure:
    """Plot how figures went, one axis below the other.

    Parameters
    ----------
    x : (n,) array
    series : mapping of name to (n,) array
    xlabel : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    place = _array(x, "x", ("n",))
    known = _series(series, "series", place.size)
    figure = _figure((6.0, 1.6 * max(1, len(known))))
    for number, (name, values) in enumerate(known.items()):
        axes = figure.add_subplot(max(1, len(known)), 1, number + 1)
        axes.plot(place, values, marker=".", lw=1.2)
        axes.set_ylabel(name, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(xlabel if number == len(series) - 1 else "")
    return figure


def _series(given: Mapping[str, ArrayLike], name: str, length: int) -> dict[str, NDArray[Any]]:
    """Return named curves of one length; refuse what has no names."""
    if not hasattr(given, "items"):
        raise InputError(f"{name} is {type(given).__name__}; give a mapping of names to arrays")
    return {str(key): _array(values, str(key), (length,)) for key, values in given.items()}


def _array(values: ArrayLike, name: str, shape: tuple[str | int, ...]) -> NDArray[Any]:
    """Return numbers of a shape, of which words stand for any length but 0; refuse others."""
    wanted = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    try:
        found = np.asarray(values)
        found = found if found.dtype.kind in "iuf" else found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is no array of numbers; give {wanted}") from error
    fits = found.ndim == len(shape) and all(
        size == length if isinstance(length, int) else size > 0
        for size, length in zip(found.shape, shape, strict=False)
    )
    if not fits:
        raise InputError(f"{name} has the shape {found.shape}; give {wanted}")
    return found


def _figure(size: tuple[float, float]) -> Figure:
    # Matplotlib takes half a second to load, and workers import this module without drawing.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    # A figure made without pyplot shows itself in a notebook by this.
    shown: Any = figure
    shown._repr_png_ = lambda: _png(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()

"""Pictures for people: arrays in, PNG bytes out.

Nothing here keeps state, opens a window or touches files. Lengths are pixels of the array unless
said otherwise; y runs downwards on the screen, as rows do.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dspa.geometry.rotation import view_density

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

# Distinct to colour-blind eyes as well (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# One paint for one fate, whatever it is called, in every picture of the report.
_FATES = {"kept": COLOURS[2], "accepted": COLOURS[2], "dropped": "#b0b0b0", "rejected": "#b0b0b0"}
# How much masked areas are tinted (of 255), and in which colour.
_VEIL, _VEIL_COLOUR = 80, "#ff50c8"


@dataclass(frozen=True)
class Circles:
    """Circles to draw on an image.

    Attributes
    ----------
    centres : (n, 2) array
        x, y in pixels of the image.
    radius : float
        Pixels of the image.
    colour : str
        A colour name or ``#rrggbb``.
    label : str
        For the legend; none if empty.
    """

    centres: ArrayLike
    radius: float
    colour: str = "#00e08a"
    label: str = ""


def image(
    array: ArrayLike,
    *,
    circles: Sequence[Circles] = (),
    pixel_size: float | None = None,
    contrast: tuple[float, float] = (1.0, 99.0),
    width: int = 1024,
    title: str = "",
    masked: ArrayLike | None = None,
) -> bytes:
    """Draw one image in grey, with circles and a scale bar.

    Parameters
    ----------
    array : (y, x) array
    circles : sequence of Circles
    pixel_size : float, optional
        A per pixel; draws a scale bar.
    contrast : (float, float)
        Percentiles shown as black and white.
    width : int
        Width of the picture in screen pixels; small images are enlarged at most four times.
    title : str
        Written above the image.
    masked : (v, u) bool array, optional
        Spans the same area on pixels of its own; what is True is tinted.
    """
    pixels = _finite(array)
    zoom = min(width / pixels.shape[1], 4.0)
    grey = _resized(_bytes(pixels, contrast), zoom)
    if masked is not None and np.any(masked):
        veil = Image.fromarray(np.asarray(masked, bool).astype(np.uint8) * np.uint8(_VEIL))
        colour = Image.new("RGB", grey.size, _VEIL_COLOUR)
        grey = Image.composite(colour, grey.convert("RGB"), veil.resize(grey.size))
    top = 22 if title else 0
    canvas = Image.new("RGB", (grey.width, grey.height + top), "white")
    canvas.paste(grey, (0, top))
    draw = ImageDraw.Draw(canvas)
    line = 2 if grey.width >= 500 else 1
    for group in circles:
        reach = group.radius * zoom
        for x, y in np.asarray(group.centres, float).reshape(-1, 2):
            u, v = (x + 0.5) * zoom, (y + 0.5) * zoom + top
            draw.ellipse((u - reach, v - reach, u + reach, v + reach), outline=group.colour,
                         width=line)  # fmt: skip
    if title:
        draw.text((4, 3), title, fill="black", font=_font(14))
    _legend(draw, [(group.label, group.colour) for group in circles if group.label], top)
    if pixel_size:
        _scale_bar(draw, canvas.size, pixel_size / zoom)
    return _png(canvas)


def montage(
    images: ArrayLike,
    *,
    labels: Sequence[str] = (),
    columns: int = 0,
    tile: int = 112,
    highlight: Sequence[int] = (),
    contrast: tuple[float, float] = (0.2, 99.8),
) -> bytes:
    """Draw many images in rows, each stretched to its own contrast.

    Parameters
    ----------
    images : (n, y, x) array
    labels : sequence of str
        One line under each image.
    columns : int
        Images in a row; chosen if 0.
    tile : int
        Width of one image on the screen.
    highlight : sequence of int
        Images that get a coloured frame (chosen classes).
    contrast : (float, float)
        Percentiles shown as black and white.
    """
    stack = _finite(images)
    if stack.ndim != 3 or not len(stack):
        raise ValueError(f"a montage needs (n, y, x) images, got shape {stack.shape}")
    columns = columns or min(len(stack), max(5, math.ceil(math.sqrt(len(stack) * 1.6))))
    rows, gap, foot = math.ceil(len(stack) / columns), 3, 15 if labels else 0
    height = round(tile * stack.shape[1] / stack.shape[2])
    size = (columns * (tile + gap) + gap, rows * (height + foot + gap) + gap)
    canvas = Image.new("RGB", size, "#202428")
    draw = ImageDraw.Draw(canvas)
    chosen = set(highlight)
    for number, picture in enumerate(stack):
        x = gap + (number % columns) * (tile + gap)
        y = gap + (number // columns) * (height + foot + gap)
        grey = Image.fromarray(_bytes(picture, contrast)).resize(
            (tile, height), Image.Resampling.BICUBIC
        )
        canvas.paste(grey, (x, y))
        if number in chosen:
            box = (x - 2, y - 2, x + tile + 1, y + height + 1)
            draw.rectangle(box, outline="#00e08a", width=3)
        if number < len(labels):
            draw.text((x + 3, y + height + 1), labels[number], fill="#e8e8e8", font=_font(11))
    return _png(canvas)


def curves(
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    thresholds: Mapping[str, float] | None = None,
    resolution: bool = False,
    ylim: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> bytes:
    """Draw curves over a common axis.

    Parameters
    ----------
    x : (n,) array
        Abscissa; spatial frequency in 1/A if ``resolution``.
    series : mapping of str to (n,) array
        Legend and values.
    title, xlabel, ylabel : str
    thresholds : mapping of str to float, optional
        Horizontal lines with their labels.
    resolution : bool
        Label the abscissa as resolution in A.
    ylim : (float, float), optional
    logarithmic : bool
        Logarithmic ordinate.
    """
    figure, axes = _axes(title, xlabel, ylabel)
    abscissa = np.asarray(x, float)
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(abscissa, np.asarray(values, float), color=colour, label=name, lw=1.8)
    for name, level in (thresholds or {}).items():
        axes.axhline(level, color="#888888", lw=1.0, ls="--")
        axes.annotate(name, (1.0, level), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=8, color="#555555")  # fmt: skip
    if logarithmic:
        axes.set_yscale("log")
    if ylim is not None:
        axes.set_ylim(*ylim)
    if resolution:
        axes.set_xlim(0.0, float(abscissa.max()))
        axes.set_xlabel(xlabel or "resolution (Å)")
        axes.xaxis.set_major_formatter(lambda k, _: f"{1 / k:.3g}" if k > 0 else "∞")
    if len(series) > 1 or any(series):
        axes.legend(loc="upper right", frameon=False, fontsize=9)
    return _saved(figure)


def scatter(
    x: ArrayLike,
    y: ArrayLike,
    *,
    colour: ArrayLike | None = None,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    vertical: Sequence[float] = (),
    horizontal: Sequence[float] = (),
    equal: bool = False,
    logarithmic: bool = False,
) -> bytes:
    """Draw points, with lines where thresholds are.

    Parameters
    ----------
    x, y : (n,) array
    colour : (n,) array, optional
        Values shown as colour, or booleans: kept and dropped.
    title, xlabel, ylabel : str
    vertical, horizontal : sequence of float
        Threshold lines.
    equal : bool
        The same scale along both axes.
    logarithmic : bool
        A logarithmic axis of ``y``, whose values are above 0.
    """
    figure, axes = _axes(title, xlabel, ylabel)
    a, b = np.asarray(x, float), np.asarray(y, float)
    size = float(np.clip(4000 / max(len(a), 1), 2, 30))
    if colour is None:
        axes.scatter(a, b, s=size, c=COLOURS[0], alpha=0.6, lw=0)
    else:
        shade = np.asarray(colour)
        if shade.dtype == bool:
            for keep, name in ((False, "dropped"), (True, "kept")):
                at = shade == keep
                axes.scatter(a[at], b[at], s=size, c=_FATES[name], alpha=0.7, lw=0, label=name)
            axes.legend(loc=1, frameon=False, fontsize=9, markerscale=math.sqrt(30 / size))
        else:
            points = axes.scatter(a, b, s=size, c=shade.astype(float), cmap="viridis", lw=0)
            figure.colorbar(points, ax=axes)
    for level in vertical:
        axes.axvline(level, color=COLOURS[1], lw=1.2, ls="--")
    for level in horizontal:
        axes.axhline(level, color=COLOURS[1], lw=1.2, ls="--")
    if equal:
        axes.set_aspect("equal", adjustable="datalim")
    if logarithmic:
        _logarithmic(axes, "y")
    return _saved(figure)


def histogram(
    values: ArrayLike | Mapping[str, ArrayLike],
    *,
    bins: int = 60,
    title: str = "",
    xlabel: str = "",
    thresholds: Sequence[float] = (),
    logarithmic: bool = False,
) -> bytes:
    """Draw a histogram of one or several sets of values.

    Parameters
    ----------
    values : array or mapping of str to array
        Values that are not finite are left out.
    bins : int
    title, xlabel : str
    thresholds : sequence of float
        Vertical lines.
    logarithmic : bool
        A logarithmic axis of values, which are above 0.
    """
    figure, axes = _axes(title, xlabel, "count")
    axes.locator_params(axis="y", integer=True)
    sets = dict(values) if isinstance(values, Mapping) else {"": values}
    flat = {name: np.asarray(item, float).ravel() for name, item in sets.items()}
    data = {name: item[np.isfinite(item)] for name, item in flat.items()}
    everything = np.concatenate(list(data.values())) if data else np.zeros(0)
    if everything.size:
        low, high = float(everything.min()), float(everything.max())
        between = np.geomspace if logarithmic else np.linspace
        edges = between(low, high if high > low else low + 1.0, bins + 1)
        for number, (name, item) in enumerate(data.items()):
            paint = _FATES.get(name, COLOURS[number % 7])
            axes.hist(item, edges.tolist(), color=paint, alpha=0.65, label=name or None)
    if logarithmic:
        _logarithmic(axes, "x")
    for level in thresholds:
        axes.axvline(level, color=COLOURS[1], lw=1.4, ls="--")
    if any(data):
        axes.legend(loc="upper right", frameon=False, fontsize=9)
    return _saved(figure)


def angular_distribution(directions: ArrayLike, *, title: str = "") -> bytes:
    """Draw where the views come from, as density on the sphere in Mollweide's projection.

    Parameters
    ----------
    directions : (n, 3) array
        Unit vectors (x, y, z) of viewing directions in the map's frame: the third rows of the
        pose matrices.
    title : str, optional
        By default it counts the views.
    """
    views = np.asarray(directions, float).reshape(-1, 3)
    figure = _figure((6.4, 3.6))
    axes = figure.add_subplot(projection="mollweide")
    mesh = axes.pcolormesh(*view_density(views), cmap="magma", vmin=0.0, rasterized=True)
    axes.set_xticks(np.radians([-120, -60, 0, 60, 120]))
    axes.tick_params(labelsize=7, colors="#666666")
    axes.grid(visible=True, lw=0.3, alpha=0.4)
    axes.set_title(title or f"viewing directions ({len(views):,})", fontsize=10, pad=12)
    figure.colorbar(mesh, ax=axes, shrink=0.8, label="density / uniform")
    return _saved(figure)


def volume_slices(
    density: ArrayLike, *, pixel_size: float | None = None, tile: int = 256, mask: bool = False
) -> bytes:
    """Draw the three central slices of a volume (xy, xz, yz) beside its projection along z.

    Parameters
    ----------
    density : (z, y, x) array
    pixel_size : float, optional
        A per voxel; draws a scale bar.
    tile : int
        Width of one slice on the screen.
    mask : bool
        The volume is a mask: fixed contrast from 0 to 1.
    """
    volume = _finite(density)
    z, y, x = (n // 2 for n in volume.shape)
    panels = (("xy", volume[z]), ("xz", volume[:, y]), ("yz", volume[:, :, x]),
              ("projection", volume.sum(0)))  # fmt: skip
    low, high = (0.0, 1.0) if mask else np.percentile(volume, (0.5, 99.9))
    canvas = Image.new("RGB", (len(panels) * (tile + 4), tile + 18), "#202428")
    draw = ImageDraw.Draw(canvas)
    for number, (name, panel) in enumerate(panels):
        if name == "projection":
            shades = _bytes(panel, (0.2, 99.8))
        else:
            shades = np.clip((panel - low) / max(high - low, 1e-20) * 255, 0, 255).astype(np.uint8)
        grey = Image.fromarray(shades).resize((tile, tile), Image.Resampling.BICUBIC)
        canvas.paste(grey, (number * (tile + 4) + 2, 2))
        draw.text((number * (tile + 4) + 6, tile + 3), name, fill="#e8e8e8", font=_font(11))
    if pixel_size:
        _scale_bar(draw, (tile + 2, tile), pixel_size * volume.shape[2] / tile)
    return _png(canvas)


def shaded(shades: ArrayLike, *, labels: Sequence[str] = ()) -> bytes:
    """Encode RGB views side by side, as `dspa.io.rendering` makes them.

    Parameters
    ----------
    shades : (n, y, x, 3) uint8 array
    labels : sequence of str
        One under each view.
    """
    views = np.asarray(shades, np.uint8)
    height, width = views.shape[1:3]
    canvas = Image.new("RGB", (width * len(views), height + (18 if labels else 0)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, view in enumerate(views):
        canvas.paste(Image.fromarray(view), (number * width, 0))
        if number < len(labels):
            draw.text(
                (number * width + width // 2 - 24, height),
                labels[number],
                fill="#444444",
                font=_font(12),
            )
    return _png(canvas)


def side_by_side(pictures: Sequence[bytes], *, below: bool = False) -> bytes:
    """Join encoded pictures from left to right, scaled to the height of the lowest.

    Parameters
    ----------
    pictures : sequence of bytes
        PNGs.
    below : bool
        From top to bottom instead, scaled to the width of the narrowest.
    """
    panels = [_turned(Image.open(io.BytesIO(png)).convert("RGB"), below) for png in pictures]
    height = min(panel.height for panel in panels)
    sizes = [(round(panel.width * height / panel.height), height) for panel in panels]
    canvas = Image.new("RGB", (sum(width for width, _ in sizes), height), "white")
    for at, (panel, size) in enumerate(zip(panels, sizes, strict=True)):
        left = sum(width for width, _ in sizes[:at])
        canvas.paste(panel.resize(size, Image.Resampling.LANCZOS), (left, 0))
    return _png(_turned(canvas, below))


def _turned(picture: Image.Image, turned: bool) -> Image.Image:  # noqa: FBT001
    return picture.transpose(Image.Transpose.TRANSPOSE) if turned else picture


def _finite(array: ArrayLike) -> NDArray[np.float32]:
    values = np.asarray(array)
    return np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _bytes(array: NDArray[Any], contrast: tuple[float, float]) -> NDArray[np.uint8]:
    step = max(1, int(math.sqrt(array.size / 1e6)))
    low, high = np.percentile(array[::step, ::step], contrast)
    scaled = (array - low) * (255.0 / max(float(high - low), 1e-20))
    grey: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return grey


def _resized(grey: NDArray[np.uint8], zoom: float) -> Image.Image:
    size = (max(1, round(grey.shape[1] * zoom)), max(1, round(grey.shape[0] * zoom)))
    how = Image.Resampling.BOX if zoom < 1 else Image.Resampling.BICUBIC
    return Image.fromarray(grey).resize(size, how).convert("RGB")


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _legend(draw: ImageDraw.ImageDraw, entries: list[tuple[str, str]], top: int) -> None:
    if not entries:
        return
    width = 30 + max(len(label) for label, _ in entries) * 8
    draw.rectangle((6, top + 6, 6 + width, top + 12 + 18 * len(entries)), fill="#202428")
    for number, (label, colour) in enumerate(entries):
        y = top + 10 + 18 * number
        draw.ellipse((12, y + 1, 22, y + 11), outline=colour, width=2)
        draw.text((28, y - 2), label, fill="#ffffff", font=_font(12))


def _scale_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], angstrom: float) -> None:
    """Draw a bar of a round length, about a fifth of the width; ``angstrom`` per screen pixel."""
    wanted = size[0] * angstrom / 5
    decade = 10.0 ** math.floor(math.log10(wanted))
    length = max(step * decade for step in (1, 2, 5) if step * decade <= wanted)
    x, y = 10, size[1] - 12
    label = f"{length / 10:g} nm" if length >= 100 else f"{length:g} A"
    end = x + length / angstrom
    draw.rectangle((x - 4, y - 22, max(end, x + 8 * len(label)) + 4, y + 8), fill="#202428")
    draw.rectangle((x, y, end, y + 4), fill="#ffffff")
    draw.text((x, y - 19), label, fill="#ffffff", font=_font(13))


def _figure(size: tuple[float, float]) -> Figure:
    # Matplotlib takes half a second to load, and workers import this module without drawing.
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=110, layout="constrained")


def _axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = _figure((6.4, 4.0))
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, lw=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _logarithmic(axes: Axes, side: Literal["x", "y"]) -> None:
    """Mark decades on an axis, in plain numbers; 1, 2 and 5 of each where there are few."""
    axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    if np.ptp(np.log10(axis.get_view_interval())) < 2.7:
        axes.locator_params(axis=side, subs=(1.0, 2.0, 5.0))
        axes.minorticks_off()
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _saved(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _png(canvas: Image.Image) -> bytes:
    stream = io.BytesIO()
    # Noise hardly shrinks, however long one tries.
    canvas.save(stream, format="PNG", compress_level=3)
    return stream.getvalue()

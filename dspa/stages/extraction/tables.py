"""Which boxes to cut and what is known of each: the tables around extraction, no pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dspa.data.counts import counted_of
from dspa.data.errors import InputError, NothingLeft
from dspa.data.schema import EXTRA
from dspa.io.names import Matches, match_files, match_names
from dspa.ops.images.extract import cut_boxes
from dspa.stages.exposures.tasks import names_and_paths
from dspa.stages.particles.duplicates import true_positions, without_duplicates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dspa.stages.exposures.tasks import MicrographTask

_CTF = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")


@dataclass(frozen=True)
class Boxes:
    """Boxes to cut, sorted by micrograph.

    Attributes
    ----------
    row : (n,) int64
        Row of the particle in its table.
    task : (n,) int64
        Position of its micrograph in ``tasks``.
    start : (n, 2) int64
        First pixel (x, y) of the box.
    coordinate, shift : (n, 2) float64
        Centre of the box in the micrograph, and what brings the particle there; A.
    tasks : tuple of MicrographTask
    set_aside : tuple of str
        Sentences on what was left out, with counts.
    """

    row: NDArray[np.int64]
    task: NDArray[np.int64]
    start: NDArray[np.int64]
    coordinate: NDArray[np.float64]
    shift: NDArray[np.float64]
    tasks: tuple[MicrographTask, ...]
    set_aside: tuple[str, ...]

    def some(self, numbers: NDArray[np.int64]) -> Boxes:
        """Return some of the boxes, in their order.

        Parameters
        ----------
        numbers : (m,) int64
        """
        names = ("row", "task", "start", "coordinate", "shift")
        return replace(self, **{name: getattr(self, name)[numbers] for name in names})


@dataclass(frozen=True)
class Images:
    """Where the images of boxes are.

    Attributes
    ----------
    paths : tuple of str
        Image stores.
    stack : (n,) int32
        Store of each box.
    index : (n,) int64
        Image in it.
    """

    paths: tuple[str, ...]
    stack: NDArray[np.int32]
    index: NDArray[np.int64]


def find_micrographs(
    particles: xr.Dataset, names: Sequence[str], paths: Sequence[str] = ()
) -> NDArray[np.int64]:
    """Find each particle's micrograph by name: position in ``names`` or -1.

    Parameters
    ----------
    particles : Dataset
        Picks or particles.
    names : sequence of str
        Of the micrographs.
    paths : sequence of str, optional
        Where the micrographs are.
    """
    index, called = _named(particles)
    found = match_names(called, names, paths=paths)
    return np.asarray(np.append(found, -1)[index], np.int64)


def match_micrographs(
    particles: xr.Dataset, names: Sequence[str], paths: Sequence[str], *, source: str
) -> Matches:
    """Find each particle's micrograph as `find_micrographs`, by where its name leads.

    Parameters
    ----------
    particles, names, paths
        As of `find_micrographs`.
    source : str
        The file that names them.
    """
    index, called = _named(particles)
    matches = match_files(called, names, paths=paths, source=source)
    return replace(matches, found=np.append(matches.found, -1)[index])


def _named(particles: xr.Dataset) -> tuple[NDArray[np.int64], list[str]]:
    """Return the micrograph of each particle, -1 for none, and the names of those that are used."""
    if "micrograph" not in particles or "micrograph_name" not in particles:
        raise InputError("the picks do not say which micrographs they lie on")
    index = np.asarray(particles["micrograph"].values)
    used = np.unique(index[index >= 0])
    position = np.where(index >= 0, np.searchsorted(used, index), -1)
    return position, [str(name) for name in particles["micrograph_name"].values[used]]


def with_pixel_size(
    particles: xr.Dataset, where: NDArray[np.integer[Any]], tasks: Sequence[MicrographTask]
) -> xr.Dataset:
    """Turn coordinates whose pixel size the source did not tell into A, by their micrographs.

    Parameters
    ----------
    particles : Dataset
    where : (n,) int
        Micrograph of each, position in ``tasks`` or -1.
    tasks : sequence of MicrographTask

    Returns
    -------
    Dataset
        ``coordinate_pixels`` is left for particles on none of the micrographs.
    """
    if "coordinate_pixels" not in particles:
        return particles
    sizes = np.append([task.pixel_size for task in tasks], np.nan)[where]
    counted = np.asarray(particles["coordinate_pixels"].values, np.float64)
    place = counted * sizes[:, None]
    if "coordinate" in particles:
        known = np.asarray(particles["coordinate"].values, np.float64)
        place = np.where(np.isfinite(place), place, known)
    counted = np.where(np.isfinite(place), np.nan, counted)
    unknown = np.full(particles.sizes["optics"], np.nan)
    of_group = np.array(particles.get("micrograph_pixel_size", unknown), np.float64)
    optics = np.asarray(particles["optics"].values)
    for group in np.flatnonzero(np.isnan(of_group)):
        here = np.unique(sizes[(optics == group) & np.isfinite(sizes)])
        if here.size:
            of_group[group] = here[0]
    settled = particles.drop_vars("coordinate_pixels").assign(
        coordinate=(("particle", "xy"), place), micrograph_pixel_size=("optics", of_group)
    )
    if np.isfinite(counted).any():
        settled["coordinate_pixels"] = (("particle", "xy"), counted)
    return settled


# Coordinates that reach no further than this across their micrographs may be of binned ones.
FAR, MANY = 0.55, 200
# More picks than this outside their micrographs are no accident.
FEW_OUTSIDE = 0.02


def doubt_of_scale(
    particles: xr.Dataset, where: NDArray[np.integer[Any]], tasks: Sequence[MicrographTask]
) -> str:
    """Say why the pixel size of coordinates is in doubt, by where they lie; nothing if it is not.

    Parameters
    ----------
    particles : Dataset
    where : (n,) int
        Micrograph of each, position in ``tasks`` or -1.
    tasks : sequence of MicrographTask
    """
    rows = np.flatnonzero(where >= 0)
    if "coordinate" not in particles or not rows.size:
        return ""
    used = np.unique(where[rows])
    shapes, pixels = np.ones((len(tasks), 2)), np.ones(len(tasks))
    shapes[used] = [tasks[n].shape for n in used]
    pixels[used] = [tasks[n].pixel_size for n in used]
    place = particles["coordinate"].values[rows] / pixels[where[rows]][:, None]
    part = place / shapes[where[rows]][:, ::-1]
    outside = ((place < -0.5) | (place > shapes[where[rows]][:, ::-1] - 0.5)).any(axis=1)
    if outside.mean() > FEW_OUTSIDE:
        lost = counted_of(outside.sum(), outside.size, "pick", verb=("lies", "lie"))
        return f"{lost} outside their micrographs"
    if np.nanmax(place) <= 1.0 and len(place) > 1:
        return "no coordinate is above 1 pixel, as if they were fractions of the micrographs"
    if len(place) >= MANY and np.nanmax(part) < FAR:
        return (
            f"no pick lies beyond {np.nanmax(part):.0%} of its micrograph in x or y, as if they "
            "were of binned micrographs"
        )
    return ""


@dataclass(frozen=True)
class Placement:
    """How boxes are placed.

    Attributes
    ----------
    box : int
        Edge in pixels of the micrographs.
    recenter : bool
        Put the box where the shifts say the particle is.
    fill : bool
        Keep boxes that leave the micrograph.
    min_distance : float
        Of particles closer than this, A, only the best stays; 0 keeps all.
    """

    box: int
    recenter: bool = False
    fill: bool = False
    min_distance: float = 0.0


def place_boxes(
    particles: xr.Dataset, tasks: Sequence[MicrographTask], placement: Placement
) -> Boxes:
    """Place a box on every particle.

    Parameters
    ----------
    particles : Dataset
        Picks, or particles with shifts.
    tasks : sequence of MicrographTask
    placement : Placement
    """
    where = find_micrographs(particles, *names_and_paths(tasks))
    particles = with_pixel_size(particles, where, tasks)
    truth = true_positions(particles)
    coordinate = np.asarray(particles["coordinate"].values, np.float64)
    if placement.recenter and not np.any(np.nan_to_num(truth - coordinate)):
        raise InputError("--recenter: the particles have no shifts; classify or refine them first")
    known = where >= 0
    shapes, pixels = np.zeros((len(tasks), 2), np.int64), np.ones(len(tasks))
    for position in np.unique(where[known]):
        shapes[position], pixels[position] = tasks[position].shape, tasks[position].pixel_size
    target = truth if placement.recenter else coordinate
    cut = cut_boxes(target / pixels[where][:, None], placement.box, shapes[where])
    finite = np.asarray(np.all(np.isfinite(truth) & np.isfinite(coordinate), axis=1))
    inside = cut.inside | placement.fill
    keep = known & finite & inside
    single = keep.copy()
    rows = np.flatnonzero(keep)
    single[rows] = without_duplicates(
        particles, truth[rows], where[rows], distance=placement.min_distance, rows=rows
    )
    notes = _notes(
        {
            "on micrographs that are not in the table, or whose CTF failed": ~known,
            "without a finite coordinate": known & ~finite,
            "whose box leaves the micrograph": known & finite & ~inside,
            f"closer than {placement.min_distance:g} A to a better one": keep & ~single,
        }
    )
    order = np.flatnonzero(single)
    order = order[np.argsort(where[order], kind="stable")]
    if not order.size:
        raise NothingLeft("no box can be cut: " + "; ".join(notes or ("there are no picks",)))
    centre = (cut.start + placement.box // 2)[order] * pixels[where[order]][:, None]
    return Boxes(
        row=order,
        task=where[order],
        start=cut.start[order],
        coordinate=centre,
        shift=centre - truth[order],
        tasks=tuple(tasks),
        set_aside=notes,
    )


def _notes(sets: Mapping[str, NDArray[np.bool_]]) -> tuple[str, ...]:
    return tuple(f"{int(rows.sum())} {reason}" for reason, rows in sets.items() if rows.any())


def without_images(particles: xr.Dataset) -> xr.Dataset:
    """Drop the columns of old images, which do not describe new ones.

    Parameters
    ----------
    particles : Dataset
        Picks or particles.
    """
    images = ("image_stack", "image_index", "image_sign", "stack_path", "stack_name")
    extra = [EXTRA + name for name in ("rlnImageName", "rlnOriginXAngst", "rlnOriginYAngst")]
    gone = [name for name in (*images, "coordinate_pixels", *extra) if name in particles]
    return particles.drop_vars(gone)


def particle_table(
    source: xr.Dataset,
    boxes: Boxes,
    micrographs: xr.Dataset,
    *,
    pixel_size: float,
    size: int,
    images: Images,
) -> xr.Dataset:
    """Make the table of extracted particles: one row per box.

    Parameters
    ----------
    source : Dataset
        Picks or particles that were cut.
    boxes : Boxes
    micrographs : Dataset
        Picks get their names, optics and CTF from here; particles keep their own.
    pixel_size : float
        Of the images, A.
    size : int
        Edge of the images in pixels.
    images : Images
        Of the boxes.
    """
    table = without_images(source).isel(particle=boxes.row)
    count = boxes.row.size
    picks = "image_stack" not in source
    if picks:
        index = np.array([task.index for task in boxes.tasks], np.int64)[boxes.task]
        table = on_micrographs(table, index, micrographs)
    table["coordinate"] = (("particle", "xy"), boxes.coordinate)
    table["shift"] = (("particle", "xy"), boxes.shift)
    table["image_stack"] = ("particle", images.stack)
    table["image_index"] = ("particle", images.index)
    table["image_sign"] = ("particle", np.ones(count, np.int8))
    table["stack_path"] = ("stack", np.array(images.paths, object))
    groups = int(table.sizes["optics"])
    sizes = np.array([task.pixel_size for task in boxes.tasks])
    table["micrograph_pixel_size"] = ("optics", np.full(groups, float(sizes[0])))
    table["pixel_size"] = ("optics", np.full(groups, pixel_size))
    table["box_size"] = ("optics", np.full(groups, size, np.int32))
    if picks:
        _take_ctf(table, boxes)
    return table


def on_micrographs(
    table: xr.Dataset, index: NDArray[np.integer[Any]], micrographs: xr.Dataset
) -> xr.Dataset:
    """Put the micrographs' own names and optics in place of what a picker called them.

    Parameters
    ----------
    table : Dataset
        Picks.
    index : (n,) int
        Row of each in the table of micrographs.
    micrographs : Dataset
    """
    own = {n: v for n, v in table.variables.items() if v.dims[0] not in ("micrograph", "optics")}
    names: dict[str, Any] = {
        "micrograph": ("particle", index.astype(np.int32)),
        "micrograph_name": ("micrograph", micrographs["micrograph_name"].values),
        "optics": ("particle", micrographs["optics"].values[index].astype(np.int32)),
    }
    if "shape" in micrographs:
        names["micrograph_shape"] = (("micrograph", "yx"), micrographs["shape"].values)
    optics = {n: v for n, v in micrographs.variables.items() if v.dims[0] == "optics"}
    optics["micrograph_pixel_size"] = optics["pixel_size"]
    return xr.Dataset(own | optics | names, attrs=table.attrs)


def _take_ctf(table: xr.Dataset, boxes: Boxes) -> None:
    """Give picks the CTF of their place in the micrograph; refined particles keep their own."""
    known = np.array([np.isfinite(task.defocus) for task in boxes.tasks])[boxes.task]
    if not known.any():
        return
    truth = boxes.coordinate - boxes.shift
    offset = np.zeros(known.size)
    # Boxes are sorted by micrograph.
    positions, first = np.unique(boxes.task, return_index=True)
    for position, low, high in zip(positions, first, [*first[1:], known.size], strict=True):
        offset[low:high] = boxes.tasks[int(position)].offset(truth[low:high])
    for name in _CTF:
        values = np.array([getattr(task, name) for task in boxes.tasks])[boxes.task]
        if name in ("defocus_u", "defocus_v"):
            values = values + offset
        old: Any = table[name].values if name in table else np.full(known.size, np.nan)
        table[name] = ("particle", np.where(known, values, old).astype(np.float64))

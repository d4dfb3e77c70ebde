"""Which boxes to cut and what is known of each: the tables around extraction, no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.io.micrographs import micrograph_info
from dspa.ops.extract import cut_boxes
from dspa.stages.micrograph_tasks import match_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.micrograph_tasks import MicrographTask

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


def find_micrographs(particles: xr.Dataset, names: Sequence[str]) -> NDArray[np.int64]:
    """Find each particle's micrograph by name: position in ``names`` or -1.

    Parameters
    ----------
    particles : Dataset
        Picks or particles.
    names : sequence of str
        Of the micrographs.
    """
    if "micrograph" not in particles or "micrograph_name" not in particles:
        raise InputError("the picks do not say which micrographs they lie on")
    found = match_names([str(name) for name in particles["micrograph_name"].values], names)
    index = np.asarray(particles["micrograph"].values)
    return np.asarray(np.append(found, -1)[index], np.int64)


def place_boxes(
    particles: xr.Dataset, tasks: Sequence[MicrographTask], *, box: int, recenter: bool, edge: str
) -> Boxes:
    """Place a box on every particle.

    Parameters
    ----------
    particles : Dataset
        Picks, or particles with shifts.
    tasks : sequence of MicrographTask
    box : int
        Edge in pixels of the micrographs.
    recenter : bool
        Put the box where the shifts say the particle is.
    edge : str
        ``drop`` boxes that leave the micrograph, or ``fill`` them with its edge pixels.
    """
    if "coordinate" not in particles:
        raise InputError("the particles have no coordinates in their micrographs")
    coordinate = np.asarray(particles["coordinate"].values, np.float64)
    old = np.zeros_like(coordinate)
    if "shift" in particles:
        old = np.nan_to_num(np.asarray(particles["shift"].values, np.float64))
    if recenter and not old.any():
        raise InputError("--recenter: the particles have no shifts; classify or refine them first")
    truth = coordinate - old
    target = truth if recenter else coordinate
    where = find_micrographs(particles, [task.name for task in tasks])
    start = np.zeros(coordinate.shape, np.int64)
    centre, inside = np.zeros_like(coordinate), np.zeros(len(where), bool)
    for position in np.unique(where[where >= 0]):
        mine = where == position
        task = tasks[position]
        info = micrograph_info(task.path)
        cut = cut_boxes(target[mine] / task.pixel_size, box, (info.rows, info.columns))
        start[mine], inside[mine] = cut.start, cut.inside
        centre[mine] = (cut.start + box // 2) * task.pixel_size
    finite = np.asarray(np.all(np.isfinite(truth), axis=1))
    if edge == "fill":
        inside = np.ones(len(where), bool)
    keep = (where >= 0) & finite & inside
    notes = _notes(where, finite, inside)
    order = np.flatnonzero(keep)
    order = order[np.argsort(where[order], kind="stable")]
    if not order.size:
        raise InputError("no box can be cut: " + "; ".join(notes or ("there are no picks",)))
    return Boxes(
        row=order,
        task=where[order],
        start=start[order],
        coordinate=centre[order],
        shift=(centre - truth)[order],
        tasks=tuple(tasks),
        set_aside=notes,
    )


def _notes(
    where: NDArray[np.int64], finite: NDArray[np.bool_], inside: NDArray[np.bool_]
) -> tuple[str, ...]:
    known = where >= 0
    counts = (
        (int((~known).sum()), "on micrographs that are not in the table, or whose CTF failed"),
        (int((known & ~finite).sum()), "without a finite coordinate"),
        (int((known & finite & ~inside).sum()), "whose box leaves the micrograph"),
    )
    return tuple(f"{count} {reason}" for count, reason in counts if count)


def particle_table(
    source: xr.Dataset, boxes: Boxes, *, pixel_size: float, size: int, store: str
) -> xr.Dataset:
    """Make the table of extracted particles: one row per box, in the order of the images.

    Parameters
    ----------
    source : Dataset
        Picks or particles that were cut.
    boxes : Boxes
    pixel_size : float
        Of the images, A.
    size : int
        Edge of the images in pixels.
    store : str
        Path of the image store.
    """
    # Columns of the old images do not describe the new ones.
    gone = ("image_stack", "image_index", "image_sign", "stack_path", "stack_name")
    extra_images = [EXTRA + name for name in ("rlnImageName", "rlnOriginXAngst", "rlnOriginYAngst")]
    dropped = [name for name in (*gone, *extra_images) if name in source]
    table = source.drop_vars(dropped).isel(particle=boxes.row)
    count = boxes.row.size
    table["coordinate"] = (("particle", "xy"), boxes.coordinate)
    table["shift"] = (("particle", "xy"), boxes.shift)
    table["image_stack"] = ("particle", np.zeros(count, np.int32))
    table["image_index"] = ("particle", np.arange(count, dtype=np.int64))
    table["image_sign"] = ("particle", np.ones(count, np.int8))
    table["stack_path"] = ("stack", np.array([store], object))
    groups = int(table.sizes["optics"])
    sizes = np.array([task.pixel_size for task in boxes.tasks])
    table["micrograph_pixel_size"] = ("optics", np.full(groups, float(sizes[0])))
    table["pixel_size"] = ("optics", np.full(groups, pixel_size))
    table["box_size"] = ("optics", np.full(groups, size, np.int32))
    if "image_stack" not in source:
        _take_ctf(table, boxes)
    return table


def _take_ctf(table: xr.Dataset, boxes: Boxes) -> None:
    """Give picks the CTF of their place in the micrograph; refined particles keep their own."""
    known = np.array([np.isfinite(task.defocus) for task in boxes.tasks])[boxes.task]
    if not known.any():
        return
    truth = boxes.coordinate - boxes.shift
    offset = np.zeros(known.size)
    for position in np.unique(boxes.task):
        mine = boxes.task == position
        offset[mine] = boxes.tasks[int(position)].offset(truth[mine])
    for name in _CTF:
        values = np.array([getattr(task, name) for task in boxes.tasks])[boxes.task]
        if name in ("defocus_u", "defocus_v"):
            values = values + offset
        old: Any = table[name].values if name in table else np.full(known.size, np.nan)
        table[name] = ("particle", np.where(known, values, old).astype(np.float64))

"""Copies: rows that are one image, or one particle cut twice.

Copies share their noise. In different half sets they let noise correlate, which shows as a
resolution that is not there; so all copies of one image go into one half set, or fold.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dspa.data.counts import counted
from dspa.io.coordinates import place_of_uid
from dspa.io.names import plain_name
from dspa.ops.images.prints import alike
from dspa.ops.picks.duplicates import closer_than
from dspa.stages.particles.duplicates import DISTANCE, true_positions
from dspa.stages.particles.exposures import NEAR, exposure_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events


def image_copies(particles: xr.Dataset) -> NDArray[np.int64]:
    """Say which rows are one and the same image: (n,) label of its image.

    One image of one file, by whatever name or link; one that import found a copy of another; a
    symmetry copy; or one place of one micrograph, cut or normalised twice, or of two versions of
    the micrograph.

    Parameters
    ----------
    particles : Dataset
    """
    count = int(particles.sizes["particle"])
    keys: list[NDArray[Any]] = []
    if "image_stack" in particles:
        stack = np.asarray(particles["image_stack"].values)
        files = file_numbers([str(path) for path in particles["stack_path"].values])
        index = np.asarray(particles["image_index"].values, np.int64)
        named = pd.DataFrame({"file": np.append(files, -1)[stack], "index": index})
        images = named.groupby(["file", "index"], sort=False).ngroup().to_numpy()
        keys.append(np.where(stack < 0, len(images) + np.arange(count), images))
    known = [name for name in ("twin", "expanded_from") if name in particles]
    keys += [pd.factorize(particles[name].values)[0] for name in known]
    pairs = [*(_to_first(key) for key in keys), _at_one_place(particles)]
    return joined(count, [*pairs, _cut_from_versions(particles)])


def origin(particles: xr.Dataset) -> NDArray[np.uint64]:
    """Return the uid of the particle that each row is, or is a symmetry copy of: (n,) uint64.

    Parameters
    ----------
    particles : Dataset
    """
    name = "expanded_from" if "expanded_from" in particles else "uid"
    return np.asarray(particles[name].values, np.uint64)


def warn_expanded(particles: xr.Dataset, events: Events) -> None:
    """Warn that a search of all poses finds the same one for every symmetry copy.

    Parameters
    ----------
    particles : Dataset
    events : Events
    """
    if "expanded_from" not in particles:
        return
    rows = int(particles.sizes["particle"])
    images = np.unique(particles["expanded_from"].values).size
    if rows > images:
        events.warning(
            f"{counted(rows, 'row')} are symmetry copies of {counted(images, 'image')}, and poses "
            "are searched anew: every image counts more than once, for nothing; subset "
            "--one-per-image takes one of each"
        )


def particle_copies(particles: xr.Dataset) -> NDArray[np.int64]:
    """Say which rows are one image or one particle cut twice: (n,) label of its particle.

    Besides `image_copies`, particles of one micrograph that are closer than duplicates may be.

    Parameters
    ----------
    particles : Dataset
    """
    images = image_copies(particles)
    if "coordinate" not in particles or "micrograph" not in particles:
        return images
    place, one = true_positions(particles), _exposure_numbers(particles)
    rows = np.flatnonzero(np.isfinite(place).all(axis=1) & (one >= 0))
    near = rows[closer_than(place[rows], one[rows], distance=DISTANCE)]
    return joined(len(images), [_to_first(images), near])


def with_pixels(
    groups: NDArray[np.int64],
    prints: NDArray[np.int16],
    valid: NDArray[np.bool_],
    moved: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Join groups of copies whose images are the same, whatever their names: (n,) label.

    Parameters
    ----------
    groups : (n,) int64
        As `particle_copies` returns it.
    prints : (n, 8) int16
        From `dspa.ops.images.prints.image_prints`.
    valid : (n,) bool
        Images that can be compared.
    moved : (pairs, 2) int64, optional
        Copies that were moved, from `dspa.stages.particles.twins.find_moved`.
    """
    pairs = [_to_first(groups), alike(prints, valid)]
    return joined(len(groups), pairs if moved is None else [*pairs, moved])


def joined(count: int, pairs: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Label rows that pairs connect, in the order in which they come: (count,).

    Parameters
    ----------
    count : int
        Rows.
    pairs : sequence of (pairs, 2) int64
    """
    edges = np.concatenate([np.empty((0, 2), np.int64), *pairs])
    if not len(edges):
        return np.arange(count)
    ones = np.ones(len(edges), np.int8)
    graph = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(pd.factorize(labels)[0], np.int64)


def file_numbers(paths: Sequence[str]) -> NDArray[np.int64]:
    """Give each file a number that is the same for all names and links of the file.

    Parameters
    ----------
    paths : sequence of str
    """
    numbers: dict[object, int] = {}
    found = []
    for path in paths:
        key: object
        try:
            status = Path(path).stat()
            key = (status.st_dev, status.st_ino)
        except (OSError, ValueError):
            key = plain_name(path)
        found.append(numbers.setdefault(key, len(numbers)))
    return np.array(found, np.int64)


def count_copies(groups: NDArray[np.int64]) -> int:
    """Count the rows that are copies of another: all of a group but one.

    Parameters
    ----------
    groups : (n,) int64
        As `image_copies` returns it.
    """
    return int(groups.size - np.unique(groups).size)


def in_both(groups: NDArray[np.int64], halves: NDArray[np.integer[Any]]) -> int:
    """Count groups with rows in both half sets.

    Parameters
    ----------
    groups : (n,) int64
        Labels of copies.
    halves : (n,) int
        1 or 2, 0 none.
    """
    return int(np.intersect1d(groups[halves == 1], groups[halves == 2]).size)


def share_evenly(
    rng: np.random.Generator, groups: NDArray[np.int64], parts: int
) -> NDArray[np.int8]:
    """Divide rows at random into parts of equal size, all of a group into one: (n,) int8, from 0.

    Parameters
    ----------
    rng : Generator
    groups : (n,) int64
        Labels 0, 1, 2 ...; without copies all differ.
    parts : int
    """
    sizes = np.bincount(groups)
    order = rng.permutation(sizes.size)
    # The largest first, so that single rows level what they leave uneven.
    order = order[np.argsort(-sizes[order], kind="stable")]
    of_group = np.empty(sizes.size, np.int8)
    of_group[order] = np.arange(sizes.size) % parts
    return np.asarray(of_group[groups], np.int8)


def as_first_copy(
    values: NDArray[Any], groups: NDArray[np.int64], before: NDArray[np.bool_] | None = None
) -> NDArray[Any]:
    """Give every row the value of the first copy of it: (n, ...).

    Parameters
    ----------
    values : (n, ...)
    groups : (n,) int64
        Labels of copies.
    before : (n,) bool, optional
        Rows that come before the others.
    """
    order = np.arange(len(groups)) if before is None else np.argsort(~before, kind="stable")
    _, at, label = np.unique(groups[order], return_index=True, return_inverse=True)
    result = np.empty_like(values)
    result[order] = values[order[at]][label]
    return result


def _micrograph_numbers(particles: xr.Dataset) -> NDArray[np.int64]:
    """Give the rows of one micrograph, by any of its names, one number: (n,), -1 if unknown."""
    names = [plain_name(str(name)) for name in particles["micrograph_name"].values]
    numbers = np.append(pd.factorize(np.array(names, object))[0], -1)
    return np.asarray(numbers[np.asarray(particles["micrograph"].values)], np.int64)


def _places(particles: xr.Dataset) -> list[NDArray[np.float64]]:
    """Return where particles are, each (n, 2): by their boxes and by their shifts, A or pixels."""
    if "micrograph" not in particles:
        return []
    if "coordinate" in particles:
        boxes = np.asarray(particles["coordinate"].values, np.float64)
        return [boxes, true_positions(particles)] if "shift" in particles else [boxes]
    # Pixels of unknown size are of about 1 A.
    name = "coordinate_pixels"
    return [np.asarray(particles[name].values, np.float64)] if name in particles else []


def _exposure_numbers(particles: xr.Dataset) -> NDArray[np.int64]:
    """Give the rows of one exposure, by any name and in any version, one number."""
    names = [str(name) for name in particles["micrograph_name"].values]
    return exposure_numbers(names, particles["micrograph"].values, _places(particles))


def _cut_from_versions(particles: xr.Dataset) -> NDArray[np.int64]:
    """Return pairs of rows cut from one place of two versions of an exposure."""
    found = [np.empty((0, 2), np.int64)]
    places = _places(particles)
    if not places:
        return found[0]
    names, one = _micrograph_numbers(particles), _exposure_numbers(particles)
    shared = np.flatnonzero((one >= 0) & np.isin(one, np.unique(one[names != one])))
    for place in places:
        rows = shared[np.isfinite(place[shared]).all(axis=1)]
        near = rows[closer_than(place[rows], one[rows], distance=NEAR)]
        found.append(near[names[near[:, 0]] != names[near[:, 1]]])
    return np.concatenate(found)


def _at_one_place(particles: xr.Dataset) -> NDArray[np.int64]:
    """Return pairs of rows with the same coordinates, micrograph and optics, with the first."""
    found = {n: particles[n].values for n in ("coordinate", "coordinate_pixels") if n in particles}
    if not found or "micrograph" not in particles:
        return np.empty((0, 2), np.int64)
    place, one = (
        place_of_uid(found, int(particles.sizes["particle"])),
        _micrograph_numbers(particles),
    )
    # Zero is what programs write that do not know, and so is one value for all.
    said = np.isfinite(place).all(axis=1) & place.any(axis=1) & (one >= 0)
    rows = np.flatnonzero(said)
    if not rows.size or (place[rows] == place[rows[0]]).all():
        return np.empty((0, 2), np.int64)
    columns = {"x": place[rows, 0], "y": place[rows, 1], "micrograph": one[rows]}
    columns["optics"] = np.asarray(particles["optics"].values)[rows]
    key = pd.DataFrame(columns).groupby(list(columns), sort=False).ngroup().to_numpy()
    return np.asarray(rows[_to_first(key)], np.int64)


def _to_first(key: NDArray[Any]) -> NDArray[np.int64]:
    """Return pairs (rows, first row of the same key) of all rows that repeat a key."""
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    pairs = np.column_stack([np.arange(len(key)), first[inverse]])
    return np.asarray(pairs[pairs[:, 0] != pairs[:, 1]], np.int64)

"""Which particles of two tables are one and the same: by their images, or by uid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dspa.data.errors import InputError
from dspa.io.image_store import stack_link
from dspa.io.images import SHARD, ParticleImages
from dspa.io.names import plain_name
from dspa.io.uids import image_words
from dspa.stages.particles.checks import pixel_digest
from dspa.stages.particles.copies import file_numbers, origin

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

# Numbers that a program counted; what is drawn or hashed from 64 bits is never as small.
_COUNTED = np.uint64(1 << 32)


@dataclass(frozen=True, eq=False)
class Same:
    """What two tables have in common.

    Attributes
    ----------
    first, other : (n,) bool, (m,) bool
        Rows of each that are in the other table too.
    strangers : (m,) bool
        Rows of the other whose uid is that of another particle of the first.
    by_image, by_uid : int
        Rows of the other that the image decides, and those that the uid alone does.
    """

    first: NDArray[np.bool_]
    other: NDArray[np.bool_]
    strangers: NDArray[np.bool_]
    by_image: int
    by_uid: int


def same_particles(first: xr.Dataset, other: xr.Dataset) -> Same:
    """Find the particles that two tables share.

    Two rows are one particle if they are one image: one number in one file, by whatever name or
    link. If they are not, their uid decides, as of particles that were extracted again; but a uid
    that was counted, or made from the name of a stack, can be that of another particle. Then place
    or pixels must agree too. Symmetry copies are told apart if both tables have such; if one has,
    they are all the particle that they come from.

    Parameters
    ----------
    first, other : Dataset
        Particles.
    """
    expanded = "expanded_from" in first and "expanded_from" in other
    keys = [np.asarray(t["uid"].values) if expanded else origin(t) for t in (first, other)]
    images = [np.full(key.size, -1, np.int64) for key in keys]
    if "image_stack" in first and "image_stack" in other:
        images = _image_numbers(first, other)
    at_uid = _rows_of(keys[0], keys[1])
    at_image = np.full(keys[1].size, -1, np.int64) if expanded else _rows_of(*images)
    at_image = np.where(images[1] < 0, -1, at_image)
    # A set that gave nothing to a union holds no row; -1 then stands for none, too.
    known = np.append(images[0], -1)
    one = (at_uid >= 0) & (images[1] >= 0) & (known[at_uid] == images[1])
    doubtful = np.flatnonzero((at_uid >= 0) & (at_image < 0) & ~one)
    strangers = np.zeros(keys[1].size, bool)
    if doubtful.size:
        strangers[doubtful] = _strangers(first, other, at_uid[doubtful], doubtful)
    alone = (at_uid >= 0) & (at_image < 0) & ~strangers
    of_image = np.isin(images[0], images[1][at_image >= 0]) & (images[0] >= 0)
    return Same(
        first=of_image | np.isin(keys[0], keys[1][alone]),
        other=(at_image >= 0) | alone,
        strangers=strangers,
        by_image=int(((at_image >= 0) | (alone & one)).sum()),
        by_uid=int((alone & ~one).sum()),
    )


def _rows_of(known: NDArray[np.generic], asked: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the first row of each key among known ones, -1 if there is none."""
    unique, row = np.unique(known, return_index=True)
    if not unique.size:
        return np.full(asked.size, -1, np.int64)
    at = np.minimum(np.searchsorted(unique, asked), unique.size - 1)
    return np.asarray(np.where(unique[at] == asked, row[at], -1), np.int64)


def _image_numbers(first: xr.Dataset, other: xr.Dataset) -> list[NDArray[np.int64]]:
    """Give each image a number that is the same in both tables; -1 for rows without."""
    frames = [_images(table) for table in (first, other)]
    paths = [name for frame in frames for name in frame["file"].unique().tolist()]
    numbers = dict(zip(paths, file_numbers(paths).tolist(), strict=True))
    joined = pd.concat(frames)
    joined["file"] = joined["file"].map(numbers)
    found = np.asarray(joined.groupby(["file", "index"], sort=False).ngroup(), np.int64)
    found = np.where(joined["index"].to_numpy() < 0, -1, found)
    return [found[: len(frames[0])], found[len(frames[0]) :]]


def _images(table: xr.Dataset) -> pd.DataFrame:
    """Return file and number of every image; of image stores the shard that is an MRC stack."""
    paths = [str(path) for path in table["stack_path"].values]
    stack = np.asarray(table["image_stack"].values, np.int64)
    index = np.asarray(table["image_index"].values, np.int64)
    stored = np.array([*(path.endswith(".zarr") for path in paths), False])[stack]
    files = np.array([*paths, ""], object)[stack]
    place = np.stack([stack[stored], index[stored] // SHARD], axis=1)
    shards, which = np.unique(place, axis=0, return_inverse=True)
    links = np.array([str(stack_link(paths[s], n)) for s, n in shards.tolist()], object)
    files[stored] = links[which.ravel()] if len(links) else ""
    number = np.where(stack < 0, -1, np.where(stored, index % SHARD, index))
    return pd.DataFrame({"file": files, "index": number})


def _strangers(
    first: xr.Dataset,
    other: xr.Dataset,
    mine: NDArray[np.int64],
    theirs: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Say of pairs of rows with one uid, whose images are not one, which are two particles."""
    uid = np.asarray(other["uid"].values)[theirs]
    weak = uid < _COUNTED
    if "image_stack" not in first or "image_stack" not in other:
        return weak & ~_at_one_place(first, other, mine, theirs)
    weak |= _named(first, mine) & _named(other, theirs)
    rows = np.flatnonzero(weak)
    rows = rows[~_at_one_place(first, other, mine[rows], theirs[rows])]
    result = np.zeros(uid.size, bool)
    result[rows] = ~_of_same_pixels(first, other, mine[rows], theirs[rows])
    return result


def _named(table: xr.Dataset, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows whose uid was made from the name of their stack and their number in it."""
    names = table["stack_name" if "stack_name" in table else "stack_path"].values
    stack = np.asarray(table["image_stack"].values)[rows]
    words = image_words([*map(str, names), ""], stack, np.asarray(table["image_index"])[rows])
    return np.asarray(words == np.asarray(table["uid"].values)[rows], np.bool_)


def _at_one_place(
    first: xr.Dataset, other: xr.Dataset, mine: NDArray[np.int64], theirs: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Pairs that lie on one micrograph, closer than half a box."""
    needed = ("coordinate", "micrograph", "micrograph_name")
    if not _has(first, needed) or not _has(other, needed):
        return np.zeros(mine.size, bool)
    one, two = (_micrographs(t)[rows] for t, rows in ((first, mine), (other, theirs)))
    apart = first["coordinate"].values[mine] - other["coordinate"].values[theirs]
    optics = np.asarray(first["optics"].values)[mine]
    box = first["box_size"].values[optics] if "box_size" in first else np.zeros(mine.size)
    reach = np.maximum(box * first["pixel_size"].values[optics] / 2, 1.0)
    return np.asarray((one == two) & (one != "") & (np.linalg.norm(apart, axis=1) <= reach))


def _has(table: xr.Dataset, names: tuple[str, ...]) -> bool:
    """Whether a table has all of some variables."""
    return all(name in table.variables for name in names)


def _micrographs(table: xr.Dataset) -> NDArray[np.object_]:
    """Name the micrograph of every row, empty if unknown."""
    names = [plain_name(str(name)) for name in table["micrograph_name"].values]
    return np.array([*names, ""], object)[np.asarray(table["micrograph"].values)]


def _of_same_pixels(
    first: xr.Dataset, other: xr.Dataset, mine: NDArray[np.int64], theirs: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Pairs of images whose pixels are the same; one of every two stacks stands for the rest."""
    if not mine.size:
        return np.zeros(0, bool)
    stacks = np.stack(
        [first["image_stack"].values[mine], other["image_stack"].values[theirs]], axis=1
    )
    _, at, which = np.unique(stacks, axis=0, return_index=True, return_inverse=True)
    same = [
        _digest(first, int(mine[pair])) == _digest(other, int(theirs[pair])) for pair in at.tolist()
    ]
    return np.array(same, bool)[which.ravel()]


def _digest(table: xr.Dataset, row: int) -> int:
    """Digest of one image; of the row alone if it cannot be read, so that it equals no other."""
    try:
        (image,) = ParticleImages(table.isel(particle=[row])).read([0])
    except InputError:
        return -1 - row
    return pixel_digest(image)

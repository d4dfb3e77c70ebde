"""Symmetry copies in files that do not say that they hold such."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted
from dspa.geometry.rotation import angle_between
from dspa.io.uids import copy_uids
from dspa.stages.particles.copies import image_copies

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.stage import Context

# Rotations from one copy to the next are one in all images to this, and are no rounding: radians.
_SAME, _TURNED = 2e-3, 2e-2


def know_expansion(context: Context, table: xr.Dataset) -> xr.Dataset:
    """Tell of symmetry copies, and find those of programs that do not name them.

    Rows are symmetry copies if every image has the same number of them and the rotations from the
    first to the others are the same for all images. They get the uid of the first as
    ``expanded_from``, uids of their own, and their number within the image as ``symmetry_copy``.

    Parameters
    ----------
    context : Context
    table : Dataset
        Particles with images.
    """
    if "expanded_from" in table:
        _tell(context, table, found=False)
        return table
    operators, order = _operators(table)
    if not len(operators):
        return table
    each = len(operators)
    uid = np.asarray(table["uid"].values, np.uint64)
    source, made = np.empty_like(uid), np.empty_like(uid)
    copy = np.empty(uid.size, np.int32)
    first = uid[order[:, 0]]
    source[order] = np.repeat(first[:, None], each, axis=1)
    made[order] = copy_uids(first, operators)
    copy[order] = np.arange(each, dtype=np.int32)
    table = table.assign(
        uid=("particle", made),
        expanded_from=("particle", source),
        symmetry_copy=("particle", copy),
    )
    if "twin" in table:
        table = table.assign(twin=("particle", source))
    _tell(context, table, found=True)
    return table


def _operators(table: xr.Dataset) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the rotations of the copies, (g, 3, 3), and their rows (n, g); none if not such."""
    nothing = np.empty((0, 3, 3)), np.empty((0, 0), np.int64)
    if "pose" not in table:
        return nothing
    groups = image_copies(table)
    images = int(groups.max(initial=-1)) + 1
    if not images or groups.size % images or groups.size == images:
        return nothing
    each = groups.size // images
    if (np.bincount(groups, minlength=images) != each).any():
        return nothing
    order = np.argsort(groups, kind="stable").reshape(images, each)
    pose = np.asarray(table["pose"].values, np.float64)[order]
    turns = np.einsum("nji,ngjk->ngik", pose[:, 0], pose)
    if not np.isfinite(turns).all() or angle_between(turns, turns[:1]).max() > _SAME:
        return nothing
    pairs = angle_between(turns[0][:, None], turns[0][None, :])
    if pairs[~np.eye(each, dtype=bool)].min() < _TURNED:
        return nothing
    return turns[0], order


def _tell(context: Context, table: xr.Dataset, *, found: bool) -> None:
    """Say that rows are symmetry copies, and what is not known of them."""
    images = np.unique(table["expanded_from"].values).size
    rows = int(table.sizes["particle"])
    if rows == images:
        return
    unsaid = (
        "; the file does not name their operators, so copies are numbered in its order"
        if found
        else ""
    )
    context.events.message(
        f"symmetry copies: {counted(rows, 'row')} of {counted(images, 'image')}{unsaid}; copies of "
        "one image stay in one half set"
    )

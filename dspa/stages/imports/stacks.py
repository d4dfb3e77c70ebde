"""The stacks that particles name: that they are there, hold the images, and in one pixel size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted, counted_of
from dspa.data.errors import InputError
from dspa.data.store import chosen
from dspa.io.images import StackInfo, stack_info
from dspa.io.names import told_if_moved
from dspa.io.plausible import other_sizes, refuse_tenfold
from dspa.io.star import nameless
from dspa.stages.imports.lines import in_file, where
from dspa.stages.imports.optics import set_sizes, size_of_headers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.stage import Context

_LISTED = 3
_STACK = ".mrcs"  # a name that says what it is, whatever the header says
_STACKS = 3  # so many of which the last image is missed by one are no accident
# Of the rows; where more are beyond the ends of stacks it is the stacks that are wrong.
_FEW_BEYOND = 0.05


def on_stacks(
    context: Context, table: xr.Dataset, named: str, *, roots: Sequence[str] = ()
) -> tuple[xr.Dataset, dict[str, StackInfo]]:
    """Open every stack's header, and set rows aside that name images which it does not hold.

    Parameters
    ----------
    context : Context
    table : Dataset
        Particles.
    named : str
        The file they come from, for messages.
    roots : sequence of str
        Folders that names are relative to, where they are given.

    Returns
    -------
    table : Dataset
    infos : dict of path to StackInfo

    Raises
    ------
    InputError
        If stacks are missing, hold images of several sizes, or are cut short: many rows are beyond.
    """
    table = _with_stacks(context, table, named)
    paths = [str(p) for p in table["stack_path"].values]
    folder = next((p for p in paths if Path(p).is_dir() and Path(p).suffix != ".zarr"), "")
    if folder:
        raise InputError(f"{named}: {folder}, named as a stack, is a folder; name the stacks in it")
    missing = [p for p in paths if not Path(p).exists()]
    if missing:
        shown = ", ".join(missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
        lost = counted_of(len(missing), len(paths), "stack", verb=("is", "are"))
        if all("\\" in path for path in missing):
            raise InputError(
                f"{named}: {lost} not there, with paths of Windows ({shown}); write / in place of "
                "\\ in the file"
            )
        raise InputError(
            f"{named}: {lost} not there ({shown}); run from the folder their paths are "
            "relative to, or give it with --images-root"
        )
    if "stack_name" in table.variables:
        names = [str(name) for name in table["stack_name"].values]
        moved = told_if_moved(names, paths, named, roots=roots)
        if moved:
            context.events.warning(moved)
    infos = {path: stack_info(path) for path in paths}
    _tell_volumes(context, infos, named)
    shapes = {(i.rows, i.columns): path for path, i in reversed(infos.items())}
    if len(shapes) > 1:
        text = "; ".join(f"{c} x {r} in {Path(p).name}" for (r, c), p in list(shapes.items())[:4])
        raise InputError(f"{named}: mixed image sizes ({text}); import one size at a time")
    rows, columns = next(iter(shapes))
    if rows != columns:
        raise InputError(f"{paths[0]}: images of {columns} x {rows} pixels; they must be square")
    counts = np.array([infos[p].count for p in paths])
    stack, index = table["image_stack"].values, table["image_index"].values
    beyond = (index >= counts[stack]) | (index < 0)
    if not beyond.any():
        return table, infos
    row = int(np.argmax(beyond))
    path = paths[stack[row]]
    first = in_file(
        f"row {row + 1} wants image {index[row] + 1} of {path}, which holds {infos[path].count}",
        table,
    )
    if _one_too_large(stack, index, counts, beyond):
        raise InputError(
            f"{named}: {first}, and no row names the first one: the numbers may all be one too "
            "large (.cs files count from 0, STAR files from 1); write them anew"
        )
    if beyond.sum() > max(1, _FEW_BEYOND * beyond.size):
        found = counted_of(int(beyond.sum()), beyond.size, "row", verb=("does", "do"))
        raise InputError(
            f"{named}: {found} not fit the stacks: {first}; copy the stack again if it is cut "
            "short, or give the folder of the right ones with --images-root"
        )
    set_aside(context, table, beyond, "a number beyond their stack")
    context.events.warning(f"{named}: {first}")
    return chosen(table, np.flatnonzero(~beyond), context.folder), infos


def _tell_volumes(context: Context, infos: Mapping[str, StackInfo], named: str) -> None:
    """Tell of maps whose sections are listed as images: RELION reads them as such, too."""
    volumes = [path for path, info in infos.items() if info.volume and Path(path).suffix != _STACK]
    if volumes:
        shown = ", ".join(volumes[:_LISTED]) + (", ..." if len(volumes) > _LISTED else "")
        few = counted_of(len(volumes), len(infos), "stack", verb=("is", "are"))
        context.events.warning(
            f"{named}: {few} a volume by the header, a cube of space group 1 ({shown}); the "
            "sections are taken as images"
        )


def _with_stacks(context: Context, table: xr.Dataset, named: str) -> xr.Dataset:
    """Set rows aside that name no stack."""
    names = table["stack_name" if "stack_name" in table.variables else "stack_path"].values
    bare = np.array([str(name).strip("> ") for name in names], object)
    empty = (nameless(bare) | (bare == ".")) & (bare != "*")
    rows = empty[table["image_stack"].values]
    if not rows.any():
        return table
    label = "blob/path" if Path(named).suffix == ".cs" else "rlnImageName"
    if rows.all():
        raise InputError(f"{named}: {label} is empty in every row; name the stacks")
    set_aside(context, table, rows, f"an empty {label}")
    kept = np.flatnonzero(~empty)
    table = chosen(table, np.flatnonzero(~rows), context.folder)
    place = np.searchsorted(kept, table["image_stack"].values)
    return table.isel(stack=kept).assign(image_stack=("particle", place.astype(np.int32)))


def _one_too_large(
    stack: NDArray[np.integer[Any]],
    index: NDArray[np.integer[Any]],
    counts: NDArray[np.integer[Any]],
    beyond: NDArray[np.bool_],
) -> bool:
    """Tell numbers that all lie one beyond: the last image of a stack is missed by one."""
    cut = np.unique(stack[beyond])
    mine = np.isin(stack, cut)
    over = index[beyond] == counts[stack[beyond]]
    if over.all() and cut.size >= _STACKS and (index > 0).all():
        return True
    whole = np.bincount(stack[mine], minlength=counts.size)[cut] >= counts[cut]
    return bool(over.all() and (index[mine] > 0).all() and whole.all())


def with_pixel_size(
    context: Context,
    table: xr.Dataset,
    infos: Mapping[str, StackInfo],
    named: str,
    *,
    given: bool,
) -> xr.Dataset:
    """Settle box and pixel size: one for all; the headers serve where the file does not say.

    Parameters
    ----------
    context : Context
    table : Dataset
        Particles.
    infos : mapping of path to StackInfo
    named : str
        The file they come from, for messages.
    given : bool
        The pixel size is an option's.

    Raises
    ------
    InputError
        If pixel sizes are unknown or mixed, or in nm.
    """
    box = next(iter(infos.values())).rows
    said = table["box_size"].values if "box_size" in table.variables else np.zeros(1)
    if (said > 0).any() and (said[said > 0] != box).any():
        context.events.warning(f"the file says {said.max()} pixels, the stacks hold {box}")
    count = table.sizes["optics"]
    table = table.assign(box_size=("optics", np.full(count, box, np.int32)))
    headers = {path: info.pixel_size for path, info in infos.items()}
    size = table["pixel_size"].values.astype(np.float64)
    if np.isnan(size).any():
        lacking = np.isnan(size)[table["optics"].values]
        stacks = np.unique(table["image_stack"].values[lacking])
        asked = [str(path) for path in table["stack_path"].values[stacks]]
        found = size_of_headers(context, headers, asked, source=named, whose="stacks")
        size = np.where(np.isnan(size), found, size)
        table = table.assign(pixel_size=("optics", size))
    groups = np.unique(table["optics"].values)
    used = size[groups]
    if np.ptp(used) > 1e-3 * np.abs(used).max():
        raise InputError(_mixed(named, table, groups, size))
    other = other_sizes(set_sizes(headers), float(used[0]))
    if other.size:
        if not given:
            refuse_tenfold(
                named, "the stacks", float(used[0]), float(other[0]), "give --pixel-size in A"
            )
        context.events.warning(
            f"the stacks say {other[0]:.4g} A per pixel ({other.size} of {len(infos)}); "
            f"{used[0]:.4g} A is used"
        )
    return table


def _mixed(
    named: str, table: xr.Dataset, groups: NDArray[np.integer[Any]], size: NDArray[np.float64]
) -> str:
    """Say which rows have which pixel size, and how to part them."""
    rows = np.bincount(table["optics"].values, minlength=len(size))
    names = np.arange(1, len(size) + 1).astype(str)
    if "optics_name" in table.variables:
        names = table["optics_name"].values
    shown = "; ".join(
        f"{size[g]:.4g} A in {counted(int(rows[g]), 'row')} of optics group {names[g]}"
        for g in groups[:_LISTED]
    )
    hint = ""
    if Path(named).suffix == ".star":
        hint = " (relion_star_handler --select, by a column that tells them apart)"
    return (
        f"{named}: mixed pixel sizes ({shown}); write the rows of each size to a file of its own"
        f"{hint} and import them one by one"
    )


def set_aside(context: Context, table: xr.Dataset, rows: NDArray[np.bool_], what: str) -> None:
    """Tell of images that are set aside, and list them in a file of the job.

    Parameters
    ----------
    context : Context
    table : Dataset
        Particles.
    rows : (n,) bool
    what : str
        What is wrong with them.
    """
    count = int(rows.sum())
    if not count:
        return
    stack, index = table["image_stack"].values, table["image_index"].values
    paths = table["stack_path"].values
    names = [f"{index[i] + 1}@{paths[stack[i]]}" for i in np.flatnonzero(rows)]
    shown = ", ".join(names[:_LISTED]) + (", ..." if count > _LISTED else "")
    shown += where(table, rows)
    context.events.warning(f"set aside {counted(count, 'image')} with {what}: {shown}")
    with (context.folder / "set_aside.txt").open("a", encoding="utf-8") as stream:
        stream.writelines(f"{name}\t{what}\n" for name in names)

"""The same image, pick or micrograph twice in one import: told, and known to later jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted, counted_of
from dspa.io.coordinates import pixel_coordinates
from dspa.io.names import plain_name
from dspa.ops.images.prints import alike
from dspa.stages.imports.lines import in_file
from dspa.stages.particles.copies import (
    as_first_copy,
    count_copies,
    file_numbers,
    image_copies,
    joined,
    origin,
    particle_copies,
)
from dspa.stages.particles.duplicates import DISTANCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.stage import Context

_LISTED = 3
# What motion correction writes of one exposure beside its sum.
_VERSIONS = ("_DW", "_noDW", "_PS", "_doseweighted", "_rigid_aligned", "_EVN", "_ODD")


def mark_twins(
    table: xr.Dataset, prints: NDArray[np.int16], usable: NDArray[np.bool_]
) -> xr.Dataset:
    """Note of copies which image they are copies of; nothing if there are none.

    Parameters
    ----------
    table : Dataset
        Particles.
    prints : (n, NUMBERS) int16
        As `dspa.ops.images.prints.image_prints` returns them.
    usable : (n,) bool
        Images that can be compared.
    """
    groups = joined(len(prints), [alike(prints, usable)])
    if not count_copies(groups):
        return table
    return table.assign(twin=("particle", as_first_copy(table["uid"].values, groups)))


def tell_copies(context: Context, table: xr.Dataset) -> xr.Dataset:
    """Warn of images that are there more than once.

    Parameters
    ----------
    context : Context
    table : Dataset
        Particles.
    """
    groups = image_copies(table)
    copies = count_copies(groups)
    _tell_near(context, table, copies)
    if not copies:
        return table.drop_vars("twin", errors="ignore")
    # Symmetry copies are meant; what is more than these is not.
    copies -= count_copies(np.unique(origin(table), return_inverse=True)[1])
    if "expanded_from" in table and not copies:
        return _in_one_half(table, groups)[0]
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    one = int(np.argmax(sizes))
    other = int(np.flatnonzero(groups == groups[first[one]])[1])
    stack, index = table["image_stack"].values, table["image_index"].values
    name = table["stack_name" if "stack_name" in table.variables else "stack_path"].values
    here, there = (f"{index[row] + 1}@{name[stack[row]]}" for row in (first[one], other))
    table, moved = _in_one_half(table, groups)
    into = ""
    if moved:
        into = f" ({counted(moved, 'copy is', 'copies are')} moved to the half set of the first)"
    found = counted_of(copies, groups.size, "particle", verb=("is a copy", "are copies"))
    pair = in_file(f"row {first[one] + 1} ({here}) and row {other + 1} ({there})", table)
    context.events.warning(
        f"{found} of another image (its file, its pixels or its place), as {pair}; copies stay in "
        f"one half set{into}, but count twice: leave them out unless you mean them (symmetry "
        "expansion)"
    )
    return table


def _tell_near(context: Context, table: xr.Dataset, copies: int) -> None:
    """Warn of particles that lie where another one does, but for some A."""
    near = count_copies(particle_copies(table)) - copies
    if near:
        lying = counted_of(near, table.sizes["particle"], "particle", verb=("lies", "lie"))
        context.events.warning(
            f"{lying} within {DISTANCE:g} A of another one of the same micrograph, so that their "
            "noise is the same; they stay in one half set where dspa assigns it, and "
            "remove-duplicates leaves one of each"
        )


def tell_shared_uids(context: Context, table: xr.Dataset) -> None:
    """Warn of particles that have one uid, by which jobs and programs tell them apart.

    Parameters
    ----------
    context : Context
    table : Dataset
        Particles.
    """
    uid = table["uid"].values
    shared = uid.size - np.unique(uid).size
    if shared:
        context.events.warning(
            f"{counted_of(shared, uid.size, 'particle', verb=('has', 'have'))} the uid of another "
            "one, as in sets that were joined; what is joined by uid later may take one for the "
            "other: remove the column to get new ones, or leave copies out"
        )


def _in_one_half(table: xr.Dataset, groups: NDArray[np.int64]) -> tuple[xr.Dataset, int]:
    """Put copies into the half set of the first of them; return how many it moves too."""
    if "half_set" not in table.variables:
        return table, 0
    halves = np.asarray(table["half_set"].values)
    there = halves > 0
    moved = np.where(there, as_first_copy(halves, groups, before=there), halves)
    count = int((moved != halves).sum())
    return (table.assign(half_set=("particle", moved)) if count else table), count


def tell_repeated_picks(context: Context, table: xr.Dataset) -> None:
    """Warn of picks at one place of one micrograph.

    Parameters
    ----------
    context : Context
    table : Dataset
        Picks.
    """
    pixels = pixel_coordinates(table)
    if pixels is None or "micrograph" not in table.variables:
        return
    names = [plain_name(str(name)) for name in table["micrograph_name"].values]
    one = np.append(np.unique(names, return_inverse=True)[1], -1)[table["micrograph"].values]
    places = np.column_stack([one, np.round(pixels)])
    copies = len(places) - len(np.unique(places, axis=0))
    if copies:
        lying = counted_of(copies, len(places), "pick", verb=("lies", "lie"))
        context.events.warning(
            f"{lying} where another one does; remove-duplicates leaves one of each"
        )


def repeated_files(paths: Sequence[str]) -> list[str]:
    """Say of each file which one before it is the same file; nothing for the first.

    Parameters
    ----------
    paths : sequence of str
    """
    numbers = file_numbers(paths)
    first = as_first_copy(np.arange(len(paths)), numbers)
    return [paths[at] if at != row else "" for row, at in enumerate(first.tolist())]


def tell_versions(context: Context, paths: Sequence[str], digest: Sequence[int]) -> None:
    """Warn of exposures that are there more than once, in several versions or as copies.

    Parameters
    ----------
    context : Context
    paths : sequence of str
    digest : sequence of int
        The same for micrographs of the same pixels; 0 where unknown.
    """
    stems = {Path(path).parent / Path(path).stem for path in paths}
    versions = [
        stem for stem in stems
        for ending in _VERSIONS
        if stem.name.endswith(ending)
        and stem.with_name(stem.name.removesuffix(ending) or "-") in stems
    ]  # fmt: skip
    if versions:
        shown = ", ".join(sorted(stem.name for stem in versions)[:_LISTED])
        words = ("file looks like another version", "files look like other versions")
        context.events.warning(
            f"{counted(len(versions), *words)} of micrographs that are here too ({shown}): each "
            "exposure would count twice; give a narrower pattern"
        )
    known = np.array([path for path, d in zip(paths, digest, strict=True) if d], object)
    numbers = np.unique([d for d in digest if d], return_inverse=True)[1]
    first = as_first_copy(np.arange(known.size), numbers) if known.size else numbers
    again = np.flatnonzero(first != np.arange(known.size))
    if again.size:
        context.events.warning(
            f"{counted(again.size, 'micrograph has', 'micrographs have')} the pixels of another, "
            f"as {known[again[0]]} and {known[first[again[0]]]}; leave copies out"
        )

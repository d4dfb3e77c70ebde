"""Union, intersection and difference of sets of particles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.particles import read_particles, write_particle_tables, write_particles
from dspa.io.uids import distinct
from dspa.stages.particles.copies import image_copies, in_both, particle_copies
from dspa.stages.particles.duplicates import DISTANCE
from dspa.stages.particles.joining import Joined, check_joinable, join_particles
from dspa.stages.particles.lead import leading
from dspa.stages.particles.same import Same, same_particles
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events


_LISTED = 12  # columns that are named


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa particle-sets``."""

    operation: str = param(
        help="union: the particles of any set; intersect: those that all have; subtract: those of "
        "the first that no other has.",
        choices=("union", "intersect", "subtract"),
    )


@dataclass(eq=False)
class Sets:
    """Sets and what becomes of them.

    Attributes
    ----------
    names : list of str
        Paths, for messages.
    tables : list of Dataset
    rows : list of (m,) int64
        What is taken of each.
    rest : (k,) int64
        Rows of the first that are left out.
    same : list of Same
        What each has in common with those before, or with the first.
    uids : list of (m,) uint64
    strangers : int
        Particles that have the uid of another one.
    """

    names: list[str]
    tables: list[xr.Dataset]
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    rest: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    same: list[Same] = field(default_factory=list)
    uids: list[NDArray[np.uint64]] = field(default_factory=list)
    strangers: int = 0


def decide(inputs: Mapping[str, Any], params: Params) -> Sets:
    """Read the sets and decide which particles are taken of each.

    Parameters
    ----------
    inputs : mapping
        As of `run`.
    params : Params

    Raises
    ------
    InputError
        If there is one set only, sets cannot be joined, or nothing would remain.
    """
    paths = inputs["particles"]
    if len(paths) < 2:
        raise InputError("particle-sets takes two sets or more; name them as J7 J9")
    if len(set(paths)) < len(paths):
        raise InputError(f"{paths[-1]}: given twice; name sets that differ")
    sets = Sets([str(p) for p in paths], [read_particles(p) for p in paths])
    first = sets.tables[0]
    if params.operation == "union":
        check_joinable(sets.tables, sets.names)
        _unite(sets)
        return sets
    keep = np.ones(int(first.sizes["particle"]), bool)
    for other in sets.tables[1:]:
        same = same_particles(first, other)
        keep &= same.first if params.operation == "intersect" else ~same.first
        sets.same.append(same)
        sets.strangers += int(same.strangers.sum())
    if not keep.any():
        raise InputError(
            f"{sets.names[0]}: no particle would remain; "
            + (
                "none is in all of the others, by its image or by uid"
                if params.operation == "intersect"
                else "all are in the others too"
            )
        )
    sets.rows = [np.flatnonzero(keep)]
    sets.rest = np.flatnonzero(~keep)
    sets.uids = [np.asarray(first["uid"].values)[keep]]
    return sets


def _unite(sets: Sets) -> None:
    """Take of every set what none before it has."""
    taken: list[NDArray[np.uint64]] = []
    for number, table in enumerate(sets.tables):
        new = np.ones(int(table.sizes["particle"]), bool)
        for before, earlier in zip(sets.tables[:number], sets.rows, strict=True):
            same = same_particles(before.isel(particle=earlier), table)
            new &= ~same.other
            sets.same.append(same)
        sets.rows.append(np.flatnonzero(new))
        taken.append(np.asarray(table["uid"].values, np.uint64)[new])
    uid = np.concatenate(taken)
    once = distinct(uid)
    # Rows that had one uid within their own set keep it: that is for import to tell.
    ends = np.cumsum([len(each) for each in taken])[:-1]
    sets.uids = [
        np.where(_within(own), own, new)
        for own, new in zip(taken, np.split(once, ends), strict=True)
    ]
    sets.strangers = int((np.concatenate(sets.uids) != uid).sum())


def _within(uid: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Rows whose uid another row of the same set has."""
    _, which, sizes = np.unique(uid, return_inverse=True, return_counts=True)
    return np.asarray(sizes[which] > 1, np.bool_)


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Write the particles that an operation leaves.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles``: paths of two sets or more. What is known of a particle comes from the first
        set that has it.
    params : Params

    Returns
    -------
    outputs : dict
        ``particles``, ``particles_star``; unless it is a union ``rest`` of the first set.
    """
    sets = decide(inputs, params)
    _tell(context.events, sets, params.operation)
    outputs: dict[str, Path] = {}
    if params.operation == "union":
        joined = join_particles(sets.tables, sets.rows, sets.uids)
        _tell_joined(context.events, joined)
        table = joined.table
        tell_halves(context.events, table)
        rows = np.arange(int(table.sizes["particle"]))
    else:
        table, rows = sets.tables[0], sets.rows[0]
        write_particles(table, context.folder / "rest.zarr", rows=sets.rest)
        outputs["rest"] = context.folder / "rest.zarr"
    outputs = write_particle_tables(table, context.folder, rows=rows) | outputs
    context.events.emit("result", particles=rows.size, rest=sets.rest.size)
    return outputs


def _tell(events: Events, sets: Sets, operation: str) -> None:
    """Say what decided, and how much was taken of each set."""
    by_image, by_uid = (sum(getattr(s, n) for s in sets.same) for n in ("by_image", "by_uid"))
    alike = f"{counted(by_image, 'match', 'matches')} by image, {by_uid} by uid alone"
    of_each = ", ".join(
        f"{rows.size} of {counted(table.sizes['particle'], 'particle')} of {name}"
        for name, table, rows in zip(sets.names, sets.tables, sets.rows, strict=False)
    )
    events.message(f"{operation}: {alike}; taken are {of_each}")
    if by_uid:
        events.message(
            f"{counted(by_uid, 'particle')} of one uid have images in different files, as after "
            "another extraction"
        )
    if sets.strangers:
        fate = "; the later of two has a new uid" if operation == "union" else ""
        events.warning(
            f"{counted(sets.strangers, 'particle has', 'particles have')} the uid of one with other"
            " pixels at another place (uids that were counted, or made of the same names), and "
            f"counted as different{fate}"
        )


def _tell_joined(events: Events, joined: Joined) -> None:
    """Say what the sets did not have in common."""
    for name, count in joined.filled.items():
        events.message(f"{counted(count, 'particle has', 'particles have')} no {name}")
    if joined.dropped:
        events.warning(
            "columns that not all sets have, or that differ in type, are left out: "
            + ", ".join(joined.dropped[:_LISTED])
            + (f" and {len(joined.dropped) - _LISTED} more" * (len(joined.dropped) > _LISTED))
        )
    left = int(joined.table.sizes["optics"])
    events.message(f"{counted(joined.groups, 'optics group')}, {left} different")


def tell_halves(events: Events, table: xr.Dataset) -> None:
    """Warn of half sets that are not whole, or that share images or particles.

    Parameters
    ----------
    events : Events
    table : Dataset
    """
    if "half_set" not in table:
        return
    halves = np.asarray(table["half_set"].values)
    none = int((halves == 0).sum())
    if none == halves.size:
        return
    if none:
        events.warning(
            f"{counted(none, 'particle has', 'particles have')} no half set and "
            f"{halves.size - none} have one; refine assigns halves anew, and "
            "refine --half-sets refuses them"
        )
    shared = in_both(image_copies(table), halves)
    near = in_both(particle_copies(table), halves) - shared
    if shared or near:
        events.warning(
            f"{counted(shared, 'image is', 'images are')} in both half sets, and "
            f"{counted(near, 'particle')} closer than {DISTANCE:g} A to one in the other half, "
            "so that a resolution would be too good; have refine assign halves anew, or use "
            "remove-duplicates"
        )


def _plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Say what would be taken."""
    sets = decide(inputs, params)
    return {
        "particles": int(sum(rows.size for rows in sets.rows)),
        "by image": sum(s.by_image for s in sets.same),
        "by uid alone": sum(s.by_uid for s in sets.same),
    }


STAGE = Stage(
    "particle-sets",
    "join, intersect or subtract sets of particles",
    Params,
    (Input("particles", "particles", many=True, help="two jobs or files, or more"),),
    run,
    _plan,
    admit=decide,
    lead=leading(700),
)

"""Symmetry expansion: each particle once for every operator, or for what a pseudo-symmetry mixes.

A map of symmetry G shows one image under all poses A R, R in G. With a row for each of them, every
asymmetric unit can be looked at in one place: subtracted, refined locally, classified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.data.growing import Growing
from dspa.data.schema import EXTRA
from dspa.data.store import spans
from dspa.geometry.rotation import view_direction
from dspa.geometry.symmetry import coset_representatives, symmetry_operators
from dspa.io.particles import read_particles, write_particle_tables
from dspa.io.picture import angular_distribution
from dspa.io.uids import copy_uids
from dspa.stages.particles.lead import leading
from dspa.stages.stage import Context, Input, Stage, check_symmetry, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

_MOST = 1_000_000_000  # rows


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa symmetry-expand``."""

    symmetry: str = param(help="Point group of the refinement: C7, D7, T, O, I, I1 to I4.")
    to: str = param(
        "C1",
        "The symmetry that is true where --symmetry is a pseudo-symmetry: a row for every view "
        "that this one tells apart, instead of every operator.",
    )

    def together(self) -> None:
        """Refuse what is no point group, a subgroup that is none, and nothing to do."""
        check_symmetry(self.symmetry)
        try:
            symmetry_operators(self.to)
        except ValueError as error:
            raise InputError(f"--to: {error}") from None
        try:
            count = len(coset_representatives(self.symmetry, self.to))
        except ValueError as error:
            raise InputError(f"--to: {error}") from None
        if count < 2:
            raise InputError(
                f"--symmetry {self.symmetry} gives one row for each particle, as they are; give "
                "the symmetry of the refinement"
                + (" and a smaller --to" if self.to != "C1" else "")
            )


def operators_of(params: Params) -> NDArray[np.float64]:
    """Return the rotations of the copies: (g, 3, 3) float64, the identity first."""
    return coset_representatives(params.symmetry, params.to)


def expand(
    table: xr.Dataset, operators: NDArray[np.float64], folder: Path | None = None
) -> xr.Dataset:
    """Return every particle once for each operator R, with the pose A R; copies lie together.

    All else stays as it is, shift and half set too. The first copy keeps its uid.

    Parameters
    ----------
    table : Dataset
        Particles with poses.
    operators : (g, 3, 3) float64
        The identity first.
    folder : path, optional
        On whose disk the columns lie, as of `Growing`.
    """
    each = len(operators)
    tables: dict[str, Any] = {}
    with Growing(folder) as grown:
        for span in spans(table):
            count = int(span.sizes["particle"])
            columns: dict[str, Any] = {}
            for name, array in span.variables.items():
                if array.dims[:1] == ("particle",):
                    values = np.repeat(array.values, each, axis=0)
                    extra = str(name).startswith(EXTRA)
                    columns[str(name)] = ("particle", values) if extra else values
                else:
                    tables[str(name)] = array
            pose = np.asarray(span["pose"].values, np.float64)
            turned = np.einsum("nij,gjk->ngik", pose, operators)
            columns["pose"] = turned.reshape(count * each, 3, 3)
            columns["expanded_from"] = columns["uid"]
            columns["symmetry_copy"] = np.tile(np.arange(each, dtype=np.int32), count)
            columns["uid"] = copy_uids(np.asarray(span["uid"].values), operators).ravel()
            grown.append(columns, count * each)
        return grown.finish(tables)


def admit(inputs: Mapping[str, Any], params: Params) -> xr.Dataset:
    """Read the particles; refuse those that cannot be expanded.

    Parameters
    ----------
    inputs : mapping
        As of `run`.
    params : Params
    """
    path = inputs["particles"]
    table = read_particles(path, lazy=True)
    if "pose" not in table:
        raise InputError(f"{path}: the particles have no poses; refine them first")
    if "expanded_from" in table:
        raise InputError(
            f"{path}: the particles are symmetry copies already; subset --one-per-image takes them "
            "back to one row of each image"
        )
    lacking = int((~np.isfinite(table["pose"].values[:, 0, 0])).sum())
    if lacking:
        raise InputError(
            f"{path}: {counted(lacking, 'particle has', 'particles have')} no pose; leave them out"
        )
    rows = int(table.sizes["particle"]) * len(operators_of(params))
    if rows > _MOST:
        raise InputError(f"{path}: {rows} rows are more than {_MOST}; take fewer particles")
    return table


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Write the copies.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles``: path.
    params : Params

    Returns
    -------
    outputs : dict
        ``particles``, ``particles_star``.
    """
    table = admit(inputs, params)
    operators = operators_of(params)
    made = expand(table, operators, context.folder)
    outputs = write_particle_tables(made, context.folder)
    count, rows = int(table.sizes["particle"]), int(made.sizes["particle"])
    of = (
        params.symmetry if params.to == "C1" else f"{params.symmetry} that {params.to} leaves apart"
    )
    context.events.message(
        f"{counted(count, 'particle')} times {counted(len(operators), 'operator')} of {of}: "
        f"{rows} rows"
    )
    if "half_set" not in table:
        context.events.warning(
            "the particles have no half sets yet; what divides them later keeps the copies of one "
            "image together"
        )
    step = max(1, rows // 200_000)
    drawn = angular_distribution(view_direction(np.asarray(made["pose"].values[::step])))
    context.events.picture("views", drawn, title="views of the copies")
    context.events.emit("result", particles=rows, images=count, operators=len(operators))
    return outputs


def _plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Say how many rows there would be."""
    count, each = int(admit(inputs, params).sizes["particle"]), len(operators_of(params))
    return {"images": count, "operators": each, "rows": count * each}


def _lead(inputs: Mapping[str, Any], params: Params) -> int:
    """Memory for what is not on disk, of every row."""
    return leading(60 * len(operators_of(params)))(inputs, params)


STAGE = Stage(
    "symmetry-expand",
    "take every particle once for each operator of its symmetry",
    Params,
    (Input("particles", "particles", help="particles with poses, as of refine"),),
    run,
    _plan,
    admit=admit,
    lead=_lead,
)

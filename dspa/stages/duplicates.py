"""Remove duplicates: of particles that are one and the same, the best is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.particles import read_particles, write_particles
from dspa.ops.duplicates import best_first, distinct
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

# What cryoSPARC takes.
DISTANCE = 20.0  # A
# Which of two is better: the first of these that tells.
SCORES = ("log_likelihood", "posterior", "ncc_relative", "ncc")


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa remove-duplicates``."""

    min_distance: float = param(
        DISTANCE, "Of particles closer than this the best is kept.", unit="A", minimum=0.1
    )


def true_positions(particles: xr.Dataset) -> NDArray[np.float64]:
    """Return where particles are, box centre minus shift: (n, 2) float64, A.

    Parameters
    ----------
    particles : Dataset
    """
    if "coordinate" not in particles:
        raise InputError("the particles have no coordinates in their micrographs")
    coordinate = np.asarray(particles["coordinate"].values, np.float64)
    if "shift" not in particles:
        return coordinate
    return np.asarray(coordinate - np.nan_to_num(particles["shift"].values), np.float64)


def without_duplicates(
    particles: xr.Dataset,
    position: NDArray[np.float64],
    micrograph: NDArray[np.integer[Any]],
    *,
    distance: float,
) -> NDArray[np.bool_]:
    """Say which particles stay if none may be closer to a better one than a distance: (n,) bool.

    The larger log-likelihood is better; where that does not tell (none, or equal) the larger
    posterior, then the larger NCC, then the smaller uid.

    Parameters
    ----------
    particles : Dataset
        For the scores.
    position : (n, 2) float64
        A.
    micrograph : (n,) int
    distance : float
        A.
    """
    scores = [np.asarray(particles[s].values, np.float64) for s in SCORES if s in particles]
    order = best_first(scores, particles["uid"].values)
    return distinct(position, micrograph, order=order, distance=distance)


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Split particles into those that stay and the duplicates."""
    table = read_particles(inputs["particles"])
    position = true_positions(table)
    if "micrograph" not in table:
        raise InputError("the particles do not say which micrographs they lie on")
    micrograph = np.asarray(table["micrograph"].values)
    known = (micrograph >= 0) & np.isfinite(position).all(axis=1)
    if not known.any():
        raise InputError("no particle has a micrograph and a coordinate; nothing to compare")
    keep = np.ones(known.size, bool)
    rows = np.flatnonzero(known)
    keep[rows] = without_duplicates(
        table.isel(particle=rows), position[rows], micrograph[rows], distance=params.min_distance
    )
    for name, chosen in (("particles", keep), ("duplicates", ~keep)):
        part = table.isel(particle=np.flatnonzero(chosen))
        write_particles(part, context.folder / f"{name}.zarr")
        write_particles(part, context.folder / f"{name}.star")
    if not known.all():
        context.events.warning(f"{int((~known).sum())} particles without a coordinate are kept")
    context.events.message(
        f"{int((~keep).sum())} of {keep.size} particles lie closer than {params.min_distance:g} A "
        "to a better one and are removed"
    )
    context.events.emit("result", particles=int(keep.sum()), duplicates=int((~keep).sum()))
    return {
        "particles": context.folder / "particles.zarr",
        "duplicates": context.folder / "duplicates.zarr",
    }


STAGE = Stage(
    name="remove-duplicates",
    summary="of particles closer than a distance keep the best",
    params=Params,
    inputs=(Input("particles", "particles"),),
    run=run,
)

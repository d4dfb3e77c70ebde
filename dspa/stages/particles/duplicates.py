"""Remove duplicates: of particles that are one and the same, the best is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.particles import read_particles, write_particle_tables
from dspa.ops.picks.duplicates import best_first, distinct
from dspa.stages.particles.lead import leading
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events

# What cryoSPARC takes.
DISTANCE = 20.0  # A
# Which of two is better: the first of these that tells.
_ALL = slice(None)
SCORES = ("log_likelihood", "posterior", "ncc_relative", "ncc")


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa remove-duplicates``."""

    min_distance: float = param(
        DISTANCE,
        "Of particles closer than this the best is kept.",
        unit="A",
        minimum=0.1,
        maximum=100000,
    )


def true_positions(particles: xr.Dataset) -> NDArray[np.float64]:
    """Return where particles are, box centre minus shift: (n, 2) float64, A.

    Parameters
    ----------
    particles : Dataset
    """
    if "coordinate" not in particles:
        if "coordinate_pixels" in particles:
            raise InputError(
                "the pixel size of the particles' coordinates is unknown; import them with "
                "--micrograph-pixel-size or --micrographs"
            )
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
    rows: NDArray[np.int64] | slice = _ALL,
) -> NDArray[np.bool_]:
    """Say which particles stay if none may be closer to a better one than a distance: (n,) bool.

    The larger log-likelihood is better; where that does not tell (none, or equal) the larger
    posterior, then the larger NCC, then the smaller uid. Symmetry copies of one image stay or go
    together.

    Parameters
    ----------
    particles : Dataset
        For the scores.
    position : (n, 2) float64
        A.
    micrograph : (n,) int
    distance : float
        A.
    rows : (n,) int64, optional
        Of these particles; of all if left out.
    """
    scores = [particles[name].values[rows] for name in SCORES if name in particles]
    order = best_first(scores, particles["uid"].values[rows])
    if "expanded_from" not in particles:
        return distinct(position, micrograph, order=order, distance=distance)
    # The best copy stands for the image.
    source = np.asarray(particles["expanded_from"].values)[rows]
    best = order[np.sort(np.unique(source[order], return_index=True)[1])]
    single = distinct(
        position[best], micrograph[best], order=np.arange(best.size), distance=distance
    )
    return np.asarray(np.isin(source, source[best[single]]), np.bool_)


def require_positions(table: xr.Dataset, path: Path) -> None:
    """Refuse particles of which nobody says where they lie.

    Parameters
    ----------
    table : Dataset
    path : Path
        Of the table, for the message.
    """
    for name, what in (("coordinate", "coordinates"), ("micrograph", "micrographs")):
        if name == "coordinate" and "coordinate_pixels" in table and name not in table:
            raise InputError(
                f"{path}: the pixel size of the particles' coordinates is unknown; import them "
                "with --micrograph-pixel-size or --micrographs"
            )
        if name not in table:
            raise InputError(
                f"{path}: the particles have no {what}, so duplicates cannot be told; import "
                "them with --micrographs, or do without removing duplicates"
            )
    if not _placed(table, true_positions(table)).any():
        raise InputError(f"{path}: no particle has a micrograph and a coordinate to compare")


def _placed(table: xr.Dataset, position: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Particles whose micrograph and position are known: (n,) bool."""
    finite = np.isfinite(position).all(axis=1)
    return np.asarray((table["micrograph"].values >= 0) & finite, np.bool_)


def single(
    table: xr.Dataset, events: Events, *, distance: float, among: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Say which particles are no duplicates, and tell how many are: (n,) bool.

    Parameters
    ----------
    table : Dataset
        That `require_positions` lets pass.
    events : Events
    distance : float
        A.
    among : (n,) bool, optional
        Only these are compared; the others stay.
    """
    position = true_positions(table)
    placed = _placed(table, position)
    if not placed.all():
        events.warning(f"kept {counted((~placed).sum(), 'particle')} without a coordinate")
    keep = np.ones(placed.size, bool)
    rows = np.flatnonzero(placed if among is None else placed & among)
    keep[rows] = without_duplicates(
        table,
        position[rows],
        np.asarray(table["micrograph"].values)[rows],
        distance=distance,
        rows=rows,
    )
    copies = ""
    if "expanded_from" in table:
        copies = " (symmetry copies of one image stay or go together)"
    events.message(
        f"removed {int((~keep).sum())} of {counted(keep.size, 'particle')}{copies}, closer than "
        f"{distance:g} A to a better one"
    )
    return keep


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Split particles into those that stay and the duplicates."""
    table = read_particles(inputs["particles"], lazy=True)
    require_positions(table, inputs["particles"])
    keep = single(table, context.events, distance=params.min_distance)
    duplicates = write_split(table, keep, context.folder)
    context.events.emit("result", particles=int(keep.sum()), duplicates=int((~keep).sum()))
    return {"particles": context.folder / "particles.zarr", "duplicates": duplicates}


def write_split(table: xr.Dataset, keep: NDArray[np.bool_], folder: Path) -> Path:
    """Write ``particles`` and ``duplicates``, as ``.zarr`` and ``.star``; return the latter."""
    for name, chosen in (("particles", keep), ("duplicates", ~keep)):
        write_particle_tables(table, folder, name, rows=np.flatnonzero(chosen))
    return folder / "duplicates.zarr"


STAGE = Stage(
    name="remove-duplicates",
    summary="of particles closer than a distance keep the best",
    params=Params,
    inputs=(Input("particles", "particles"),),
    run=run,
    lead=leading(150),
)

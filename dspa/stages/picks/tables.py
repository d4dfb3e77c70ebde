"""What the pickers share: candidates of many micrographs as one table of picks, and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.schema import make
from dspa.io.particles import write_particle_tables
from dspa.io.picture import Circles, histogram, image, scatter
from dspa.io.uids import pick_uids
from dspa.ops.ctf.surface import defocus_offset
from dspa.ops.picks.search_image import clip_outliers, coarsen
from dspa.ops.picks.trend import relative_scores
from dspa.stages.exposures.tasks import local_surfaces
from dspa.stages.picks.junk_masks import read_junk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.ops.picks.candidates import Candidates
    from dspa.stages.exposures.tasks import MicrographTask
    from dspa.stages.stage import Context

# Most points of a scatter picture.
SCATTER_POINTS = 20_000
_OPTICS = ("optics_name", "voltage", "spherical_aberration", "amplitude_contrast")
_CTF = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")


def picks_table(
    micrographs: xr.Dataset, done: Sequence[tuple[MicrographTask, Candidates]]
) -> xr.Dataset:
    """Make the table of picks of all micrographs that were searched.

    Parameters
    ----------
    micrographs : Dataset
        The whole table; the picks name all of its micrographs.
    done : sequence of (MicrographTask, Candidates)
    """
    counts = [len(found.ncc) for _, found in done]
    row = np.repeat(np.array([task.index for task, _ in done], np.int64), counts)
    coordinate = np.concatenate(
        [found.position * task.pixel_size for task, found in done] or [np.zeros((0, 2))]
    )
    ncc, power = (_joined(done, name) for name in ("ncc", "power"))
    defocus = mean_defocus(micrographs)
    optics = np.asarray(micrographs["optics"].values)
    table: dict[str, Any] = {
        "uid": pick_uids(micrographs["micrograph_name"].values, row, coordinate),
        "micrograph": row,
        "optics": optics[row],
        "coordinate": coordinate,
        "ncc": ncc,
        "power": power,
        "ncc_relative": relative_scores(ncc, row, defocus),
        "power_relative": relative_scores(power, row, defocus),
        "pick_template": _joined(done, "template"),
        "pick_angle": _joined(done, "angle"),
        "pick_diameter": _joined(done, "diameter"),
        "micrograph_name": micrographs["micrograph_name"].values,
        "micrograph_pixel_size": micrographs["pixel_size"].values,
        **{name: micrographs[name].values for name in _OPTICS if name in micrographs},
        **{name: micrographs[name].values[row] for name in _CTF if name in micrographs},
    }
    if "defocus_u" in table:
        # A failed fit is no knowledge: its picks have no CTF. The others have that of their place.
        offset = defocus_offset(local_surfaces(micrographs)[row], coordinate)
        for name in ("defocus_u", "defocus_v"):
            table[name] = np.where(np.isfinite(defocus[row]), table[name] + offset, np.nan)
    if "shape" in micrographs:
        table["micrograph_shape"] = micrographs["shape"].values
    return make("particles", table)


def _joined(done: Sequence[tuple[MicrographTask, Candidates]], name: str) -> NDArray[Any]:
    arrays = [getattr(found, name) for _, found in done]
    return np.concatenate(arrays) if arrays else np.zeros(0, np.float32)


def mean_defocus(micrographs: xr.Dataset) -> NDArray[np.float64]:
    """Mean defocus of each micrograph, A; NaN where unknown or the fit failed."""
    count = int(micrographs.sizes["micrograph"])
    if "defocus_u" not in micrographs:
        return np.full(count, np.nan)
    mean = 0.5 * (micrographs["defocus_u"].values + micrographs["defocus_v"].values)
    if "ctf_quality" in micrographs:
        mean = np.where(micrographs["ctf_quality"].values == 0, np.nan, mean)
    return np.asarray(mean, np.float64)


def write_picks(folder: Path, picks: xr.Dataset) -> dict[str, Path]:
    """Write picks.zarr and picks.star."""
    return {"picks": write_particle_tables(picks, folder, "picks")["picks"]}


def micrograph_picture(
    task: MicrographTask,
    groups: Mapping[str, tuple[NDArray[np.float64], str]],
    *,
    diameter: float,
    junk: NDArray[np.bool_] | None = None,
) -> bytes:
    """Draw a micrograph, low-passed to 20 A or a tenth of the diameter, with circles.

    Parameters
    ----------
    task : MicrographTask
    groups : mapping of label to ((p, 2) float64, colour)
        Positions in A.
    diameter : float
        Of the circles, A.
    junk : (v, u) bool, optional
        Where nothing was picked; tinted.
    """
    resolution = max(20.0, diameter / 10.0, 3.0 * task.pixel_size)
    coarse, pixel, _ = coarsen(
        clip_outliers(task.read()), pixel_size=task.pixel_size, resolution=resolution
    )
    circles = [
        Circles(positions / pixel, 0.5 * diameter / pixel, colour, f"{label}: {len(positions)}")
        for label, (positions, colour) in groups.items()
    ]
    name = Path(task.name).name
    return image(coarse, circles=circles, pixel_size=pixel, title=name, masked=junk)


def show_scores(context: Context, picks: xr.Dataset, *, shape: str = "NCC") -> None:
    """Put the scatter of the scores and their histograms into the report.

    Parameters
    ----------
    context : Context
    picks : Dataset
    shape : str
        What the shape score is called.
    """
    count = int(picks.sizes["particle"])
    if count == 0:
        return
    step = max(1, count // SCATTER_POINTS)
    ncc, power = picks["ncc"].values, picks["power"].values
    context.events.picture(
        "ncc_power",
        scatter(ncc[::step], np.maximum(power[::step], 1e-3),
                xlabel=shape, ylabel="power", logarithmic=True),
        title=f"candidates: {shape} against power",
    )  # fmt: skip
    context.events.picture(
        "ncc",
        histogram(ncc, xlabel=shape),
        title=f"candidates: {shape}, noise left, particles right",
    )


def show_candidates(
    context: Context,
    done: Sequence[tuple[MicrographTask, Candidates]],
    *,
    likely: NDArray[np.bool_],
    label: str,
    diameter: float,
) -> None:
    """Draw candidates, and what is junk, on three micrographs spread over the set.

    Parameters
    ----------
    context : Context
    done : sequence of (MicrographTask, Candidates)
    likely : (p,) bool
        Which of all candidates, in the order of ``done``, look like particles.
    label : str
        What these are called.
    diameter : float
        Of the circles, A.
    """
    rows = np.unique(np.round(np.linspace(0, len(done) - 1, min(3, len(done)))).astype(int))
    starts = np.cumsum([0, *(len(found.ncc) for _, found in done)])
    for row in rows:
        task, found = done[row]
        positions = found.position * task.pixel_size
        good = likely[starts[row] : starts[row + 1]]
        groups = {
            label: (positions[good], "#00e08a"),
            "other candidates": (positions[~good], "#b06050"),
        }
        junk = read_junk(context.folder, task.index)
        png = micrograph_picture(task, groups, diameter=diameter, junk=junk)
        context.events.picture(f"micrograph_{task.index:05d}", png, title=task.name)

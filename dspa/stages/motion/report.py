"""What ``dspa motion`` leaves: the table of micrographs, pictures, warnings, the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted, counted_of
from dspa.data.schema import EXTRA
from dspa.io.micrographs import write_micrographs
from dspa.io.picture import histogram
from dspa.stages.motion.work import KINDS, image_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import xarray as xr

    from dspa.stages.motion.params import Params
    from dspa.stages.motion.work import Figures, MovieTask
    from dspa.stages.stage import Context

_SHOWN = 6
_LABELS = {
    "total": "rlnAccumMotionTotal",
    "early": "rlnAccumMotionEarly",
    "late": "rlnAccumMotionLate",
}


def micrograph_name(stem: str) -> str:
    """Return what the micrograph of a movie is called.

    Parameters
    ----------
    stem : str
        How its files begin.
    """
    return f"micrographs/{stem}.mrc"


def write_tables(
    folder: Path, movies: xr.Dataset, done: Sequence[tuple[MovieTask, Figures]], params: Params
) -> None:
    """Write the table of micrographs, as dspa and as RELION read it.

    Parameters
    ----------
    folder : Path
        Of the job.
    movies : Dataset
    done : sequence of (MovieTask, Figures)
    params : Params
    """
    tasks, figures = [task for task, _ in done], [found for _, found in done]
    table = movies.isel(micrograph=[task.index for task in tasks])
    # Movies of one optics group have one size of frames and one kind of file.
    ups = np.ones(table.sizes["optics"])
    for place, task in zip(table["optics"].values, tasks, strict=True):
        if task.path.lower().endswith(".eer"):
            ups[place] = float(params.eer_upsampling)
    shape = np.array([(found.rows, found.columns) for found in figures], np.int32)
    size = np.asarray(table["pixel_size"].values) / ups * params.bin
    variables = {
        "path": [str(image_path(folder, task.stem)) for task in tasks],
        "micrograph_name": [micrograph_name(task.stem) for task in tasks],
    }
    table = table.assign(
        {name: ("micrograph", np.array(values, object)) for name, values in variables.items()}
        | {
            "pixel_size": ("optics", size),
            "shape": (("micrograph", "yx"), shape),
            "rows_turned": ("micrograph", np.zeros(len(tasks), np.int8)),
            "motion": ("micrograph", np.array([f.total for f in figures])),
            "local_motion": ("micrograph", np.array([f.local for f in figures])),
            f"{EXTRA}rlnMicrographMetadata": (
                "micrograph", np.array([f"motion/{task.stem}.star" for task in tasks], object)
            ),
        }
        | {
            f"{EXTRA}{label}": ("micrograph", np.array([getattr(f, name) for f in figures]))
            for name, label in _LABELS.items()
        }
    )  # fmt: skip
    table.attrs["kind"] = "micrographs"
    table.attrs.pop("gain", None)
    write_micrographs(table, folder / "micrographs.zarr")
    write_micrographs(table, folder / "micrographs.star")


def summarise(context: Context, done: Sequence[tuple[MovieTask, Figures]], params: Params) -> None:
    """Warn of movies that show too little, show some trajectories, and say how it went.

    Parameters
    ----------
    context : Context
    done : sequence of (MovieTask, Figures)
    params : Params
    """
    figures = [found for _, found in done]
    counts = [sum(found.kind == kind for found in figures) for kind in range(len(KINDS))]
    many = len(figures)
    if counts[1] and min(params.patches) > 2:
        said = counted_of(counts[1], many, "movie", verb=("shows", "show"))
        context.events.warning(
            f"{said} too little for motion that varies over the frame: corrected as whole frames"
        )
    still = sum(found.kind == 0 and len(found.whole) > 1 for found in figures)
    if still:
        said = counted_of(still, many, "movie", verb=("shows", "show"))
        context.events.warning(f"{said} too little for any motion: summed as they are")
    total = np.array([found.total for found in figures])
    local = np.array([found.local for found in figures])
    order = np.argsort(total, kind="stable")
    shown = dict.fromkeys([*order[: _SHOWN // 2].tolist(), *order[-(_SHOWN // 2) :].tolist()])
    for row in shown:
        task = done[row][0]
        path = context.folder / "motion" / f"{task.stem}.png"
        context.events.picture(f"motion_{task.index:05d}", path.read_bytes(), title=task.stem)
    context.events.picture(
        "motion", histogram(total, bins=30, xlabel="motion (A)"), title="motion of whole frames"
    )
    filled = int(np.median([found.filled for found in figures]))
    context.events.message(
        f"{counted(many, 'movie')}: {counts[2]} with local motion, {counts[1]} as whole frames; "
        f"median motion {np.median(total):.1f} A, local up to {np.median(local):.1f} A; "
        f"{counted(filled, 'bad pixel')} filled; trajectories of each are in motion/"
    )
    context.events.emit(
        "result",
        micrographs=many,
        motion=float(np.median(total)),
        local=float(np.median(local)),
    )

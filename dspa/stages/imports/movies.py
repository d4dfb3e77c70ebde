"""Import movies: as they are, and summed over their frames."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError, NothingLeft
from dspa.io.micrographs import read_micrograph_image
from dspa.io.volumes import read_images, write_image_stack
from dspa.ops.images.gain import without_dead
from dspa.stages.exposures.tasks import in_known_order, keep_results
from dspa.stages.imports.gains import Gain, read_gain, settle_gain
from dspa.stages.imports.micrographs import (
    Params,
    import_files,
    report_set_aside,
    unique_names,
    write_tables,
)
from dspa.stages.stage import Context, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

GAIN = "gain.mrc"  # beside movies.zarr


@dataclass(frozen=True)
class MovieParams(Params):
    """Parameters of ``dspa import movies``."""

    gain: str | None = param(None, "Gain reference of the camera (MRC, TIFF or Falcon .gain).")
    gain_rotate: int = param(
        0, "Quarter turns of the gain reference, clockwise, before the flip.", minimum=0, maximum=3
    )
    gain_flip: str = param(
        "none", "Flip it upside down (y) or left to right (x).", choices=("none", "y", "x")
    )
    gain_use: str = param(
        "auto",
        "Multiply frames with it or divide them by it; auto multiplies, and lets the frames tell "
        "for EER movies and .gain files.",
        choices=("auto", "multiply", "divide"),
    )
    sum: bool = param(True, "Sum the frames as they are; dspa motion needs no such sums.")


def run_movies(
    context: Context, inputs: Mapping[str, Any], params: MovieParams
) -> Mapping[str, Path]:
    """Import movies in place, and sum their frames (unaligned) to micrographs."""
    reference = None if params.gain is None else _read_gain(params)
    against = None if reference is None else partial(_settle, context, reference)
    table = import_files(context, params, kind="movies", against=against)
    gain = None if reference is None else _settled(context)
    if gain is not None:
        table.attrs["gain"] = GAIN
    write_tables(context, table, "movies")
    if not params.sum:
        return {"movies": context.folder / "movies.zarr"}
    context.events.message("frames are summed as they are; dspa motion corrects their motion")
    (context.folder / "micrographs").mkdir(exist_ok=True)
    names = unique_names(table["path"].values)
    size = table["pixel_size"].values[table["optics"].values]
    work = [
        _Sum(str(path), context.folder / "micrographs" / f"{name}.mrc", float(pixel))
        for path, name, pixel in zip(table["path"].values, names, size, strict=True)
    ]
    keep = keep_results(context, "sum", Summed)
    made = context.runner.map(partial(_sum_movie, gain), work, name="sum", keep=keep)
    kept = np.array([isinstance(one, Summed) for one in made])
    faults = [one for one in made if isinstance(one, str)]
    report_set_aside(context, table["micrograph_name"].values[~kept], faults)
    if not kept.any():
        raise NothingLeft(f"no movie could be summed; the first: {faults[0]}")
    rows = np.flatnonzero(kept)
    names = [str(name) for name in table["micrograph_name"].values[rows]]
    rows = rows[in_known_order(context, "micrographs.zarr", names)]
    summed = table.isel(micrograph=rows)
    targets = [str(work[row].target) for row in rows]
    summed = summed.assign(
        path=("micrograph", np.array(targets, object)),
        # The sums are MRC files, their rows as in MRC files.
        rows_turned=("micrograph", np.zeros(len(targets), np.int8)),
    )
    summed.attrs["kind"] = "micrographs"
    write_tables(context, summed, "micrographs")
    return {
        "movies": context.folder / "movies.zarr",
        "micrographs": context.folder / "micrographs.zarr",
    }


def _read_gain(params: MovieParams) -> Gain:
    assert params.gain is not None
    return read_gain(
        params.gain, rotate=params.gain_rotate, flip=params.gain_flip, use=params.gain_use
    )


def _settle(context: Context, reference: Gain, movies: Sequence[str]) -> None:
    """Settle the gain as it is applied, for `dspa motion` too; in a job that grows, once."""
    target = context.folder / GAIN
    if not (context.grows and target.is_file()):
        gain = settle_gain(context, reference, movies)
        write_image_stack(target, gain[None], pixel_size=float("nan"))


def _settled(context: Context) -> NDArray[np.float32]:
    return np.asarray(read_images(context.folder / GAIN).images[0], np.float32)


@dataclass(frozen=True)
class _Sum:
    """A movie that is summed, and where to."""

    path: str
    target: Path
    pixel_size: float


@dataclass(frozen=True)
class Summed:
    """A movie was summed."""


def _sum_movie(gain: NDArray[np.float32] | None, work: _Sum) -> Summed | str:
    try:
        total = read_micrograph_image(work.path)
        if gain is not None and gain.shape != total.shape:
            return f"{work.path}: frames of {total.shape}, the gain reference is {gain.shape}"
        total = total if gain is None else without_dead(total * gain, gain == 0)
    except InputError as error:
        return str(error)
    write_image_stack(work.target, total[None], pixel_size=work.pixel_size)
    return Summed()


MOVIES_STAGE = Stage(
    "import movies",
    "bring in movies, summed over their frames",
    MovieParams,
    (),
    run_movies,
    grows=True,
)

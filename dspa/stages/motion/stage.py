"""Correct movies for motion: aligned, weighted by dose, summed to micrographs; a task each."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.defects import read_defects
from dspa.io.micrographs import micrograph_info, read_micrographs, rows_turned
from dspa.io.volumes import write_image_stack
from dspa.ops.motion.movie import memory
from dspa.stages.exposures.tasks import (
    contained,
    in_known_order,
    keep_results,
    micrograph_tasks,
    report_failures,
)
from dspa.stages.imports.gains import read_gain, settle_gain
from dspa.stages.imports.micrographs import unique_names
from dspa.stages.motion.params import Params
from dspa.stages.motion.report import micrograph_name, summarise, write_tables
from dspa.stages.motion.work import NO_DOSE, Figures, MovieTask, Settings, correct, look_at
from dspa.stages.stage import Context, Input, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr

GAIN, DEFECTS = "gain.mrc", "defects.mrc"


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Correct every movie; a task each."""
    table = read_micrographs(inputs["movies"])
    tasks = movie_tasks(table, params, all_doses=not context.grows)
    paths = [task.path for task in tasks]
    settings = Settings(
        folder=context.folder,
        gain=_settled_gain(context, Path(inputs["movies"]), table, paths, params),
        bad=_settled_defects(context, paths, params),
        params=params,
    )
    for name in ("micrographs", "motion"):
        (context.folder / name).mkdir(exist_ok=True)
    keep = keep_results(context, (params, settings.gain, settings.bad), Figures)
    results = context.runner.map(partial(correct, settings), tasks, name="motion", keep=keep)
    report_failures(context, tasks, results, what="motion")
    done = [
        (task, found)
        for task, found in zip(tasks, results, strict=True)
        if isinstance(found, Figures)
    ]
    names = [micrograph_name(task.stem) for task, _ in done]
    done = [done[row] for row in in_known_order(context, "micrographs.zarr", names)]
    write_tables(context.folder, table, done, params)
    summarise(context, done, params)
    return {"micrographs": context.folder / "micrographs.zarr"}


def movie_tasks(table: xr.Dataset, params: Params, *, all_doses: bool = True) -> list[MovieTask]:
    """List the movies of a table.

    Parameters
    ----------
    table : Dataset
        Movies.
    params : Params
    all_doses : bool
        Refuse all where the dose of one is unknown; else that one is set aside when it is looked
        at.

    Raises
    ------
    InputError
        If dose weighting is asked for and the dose of a movie is unknown.
    """
    rows = micrograph_tasks(table, limit=params.micrographs)
    stems, turned = unique_names(table["path"].values), rows_turned(table)
    doses = np.full(table.sizes["micrograph"], math.nan)
    if "dose" in table.variables:
        doses = np.asarray(table["dose"].values, np.float64)
    if all_doses and params.dose_weighting and params.dose_per_frame is None:
        unknown = [row.name for row in rows if not doses[row.index] > 0]
        if unknown:
            raise InputError(f"{unknown[0]}: {NO_DOSE}")
    return [
        MovieTask(
            index=row.index,
            path=row.path,
            name=row.name,
            stem=stems[row.index],
            turned=bool(turned[row.index]),
            pixel_size=row.pixel_size,
            voltage=params.voltage or row.voltage,
            dose=float(doses[row.index]),
        )
        for row in rows
    ]


def _settled_gain(
    context: Context, source: Path, table: xr.Dataset, paths: Sequence[str], params: Params
) -> str:
    """Write the gain as it is applied, or find the one that the import settled; return its path."""
    target = context.folder / GAIN
    if params.gain is not None and context.grows and target.is_file():
        return str(target)  # settled with the first movies
    if params.gain is not None:
        gain = read_gain(
            params.gain, rotate=params.gain_rotate, flip=params.gain_flip, use=params.gain_use
        )
        factor = settle_gain(context, gain, paths)
        write_image_stack(target, factor[None], pixel_size=float("nan"))
        return str(target)
    named = str(table.attrs.get("gain", ""))
    if not named:
        context.events.message("no gain reference is given; frames are taken as they are")
        return ""
    beside = source.with_name(Path(named).name)
    if not beside.is_file():
        raise InputError(f"{beside}: the gain of these movies is gone; give it with --gain")
    return str(beside)


def _settled_defects(context: Context, paths: Sequence[str], params: Params) -> str:
    if params.defect is None:
        return ""
    info = next((found for found in map(_looked_at, paths) if found is not None), None)
    if info is None:
        raise InputError(f"{paths[0]}: no movie can be read")
    bad = read_defects(params.defect, info)
    write_image_stack(
        context.folder / DEFECTS, bad[None].astype(np.float32), pixel_size=float("nan")
    )
    context.events.message(f"{params.defect}: {int(bad.sum())} bad pixels")
    return str(context.folder / DEFECTS)


def _looked_at(path: str) -> tuple[int, int] | None:
    try:
        info = micrograph_info(path)
    except InputError:
        return None
    return info.rows, info.columns


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Estimate work and memory."""
    tasks = movie_tasks(read_micrographs(inputs["movies"]), params)
    first = contained(partial(look_at, tasks[0], params))
    if isinstance(first, str):
        raise InputError(first)
    movie = first.movie
    needed = memory(movie.shape, movie.frames, halves=params.even_odd)
    pixels = movie.frames * movie.shape[0] * movie.shape[1]
    return {
        "movies": len(tasks),
        "frames": movie.frames,
        "memory per worker (MiB)": math.ceil(needed / 2**20),
        "estimate (s per core)": round(len(tasks) * (2.0 + pixels / 4e7), 1),
    }


STAGE = Stage(
    name="motion",
    summary="correct movies for motion, weight them by dose, and sum them to micrographs",
    params=Params,
    inputs=(Input("movies", "movies"),),
    run=run,
    plan=plan,
    grows=True,
)

"""Pick particles without a template: disks, rings and ellipses between two diameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs
from dspa.ops.pick import Candidates, PickRules, pick_blobs
from dspa.ops.search_image import search_image
from dspa.ops.templates import SHAPES, Blob, blob_diameters, blob_set
from dspa.stages.inspect_picks import scores, suggested
from dspa.stages.junk_masks import write_junk
from dspa.stages.micrograph_tasks import (
    COPIES,
    MicrographTask,
    contained,
    micrograph_tasks,
    report_failures,
)
from dspa.stages.picking import picks_table, show_candidates, show_scores, write_picks
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa pick blob``."""

    min_diameter: float = param(help="Smallest particle diameter.", unit="A", minimum=20)
    max_diameter: float = param(help="Largest particle diameter.", unit="A", maximum=5000)
    shapes: str = param("circle", "Comma-separated: circle (or disk), ring, ellipse.")
    size_ratio: float = param(
        1.2, "Ratio of one blob's diameter to the next.", minimum=1.02, maximum=3
    )
    low_pass: float = param(20.0, "Low-pass of micrographs and blobs.", unit="A", minimum=3)
    use_ctf: bool = param(True, "See the blobs through each micrograph's CTF.")
    min_separation: float = param(
        1.0, "Smallest distance of two picks over the smallest diameter.", minimum=0.1, maximum=5
    )
    edge: float = param(
        0.25, "Nearest a pick may lie to the edge, over the smallest diameter.", minimum=0
    )
    threshold: float = param(0.0, "Lowest NCC kept as a candidate.", minimum=-1, maximum=1)
    max_picks: int = param(4000, "Most candidates of a micrograph.", minimum=1)
    micrographs: int = param(0, "Only so many micrographs, spread over the set (0: all).")


def _blobs(params: Params) -> list[Blob]:
    if params.max_diameter < params.min_diameter:
        raise InputError("--max-diameter is below --min-diameter; swap them")
    shapes = tuple(word.strip() for word in params.shapes.split(",") if word.strip())
    if not shapes or any(word not in SHAPES for word in shapes):
        raise InputError(f"--shapes is {params.shapes!r}; use some of {', '.join(SHAPES)}")
    diameters = blob_diameters(params.min_diameter, params.max_diameter, ratio=params.size_ratio)
    return blob_set(shapes, diameters)


def _pick(params: Params, folder: Path, task: MicrographTask) -> Candidates | str:
    return contained(partial(_search, params, task, folder=folder))


def _search(params: Params, task: MicrographTask, *, folder: Path) -> Candidates:
    resolution = max(params.low_pass, 3.0 * task.pixel_size)
    field = search_image(
        task.read(),
        pixel_size=task.pixel_size,
        resolution=resolution,
        diameter=params.max_diameter,
        sign=task.sign,
    )
    write_junk(folder, task.index, field.junk)
    rules = PickRules(
        separation=params.min_separation * params.min_diameter,
        threshold=params.threshold,
        limit=params.max_picks,
        resolution=resolution,
        edge=params.edge * params.min_diameter,
    )
    ctf = task.ctf if params.use_ctf else None
    return pick_blobs(field, _blobs(params), rules, ctf=ctf)


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Search every micrograph; a task each."""
    micrographs = read_micrographs(inputs["micrographs"])
    blobs = _blobs(params)
    tasks = micrograph_tasks(micrographs, limit=params.micrographs)
    results = context.runner.map(partial(_pick, params, context.folder), tasks, name="pick")
    report_failures(context, tasks, results, what="pick blob")
    done = [
        (task, found)
        for task, found in zip(tasks, results, strict=True)
        if isinstance(found, Candidates)
    ]
    picks = picks_table(micrographs, done)
    outputs = write_picks(context.folder, picks)
    limits = suggested(picks, calibrate=True)
    good = limits.keeps(*scores(picks, calibrate=True))
    likely = picks["pick_diameter"].values[good]
    diameter = float(np.median(likely)) if likely.size else params.min_diameter
    show_scores(context, picks)
    show_candidates(context, done, likely=good, label="likely", diameter=diameter)
    context.events.message(
        f"{picks.sizes['particle']} candidates on {len(done)} micrographs with {len(blobs)} blobs; "
        f"{likely.size} likely ({limits.words()}), median diameter {diameter:.0f} A; "
        "next: dspa inspect-picks"
    )
    context.events.emit(
        "result",
        candidates=int(picks.sizes["particle"]),
        likely=int(likely.size),
        diameter=diameter,
    )
    return outputs


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Estimate work and memory."""
    tasks = micrograph_tasks(read_micrographs(inputs["micrographs"]), limit=params.micrographs)
    pixels = tasks[0].read().size
    coarse = pixels * (3.0 * tasks[0].pixel_size / params.low_pass) ** 2
    seconds = len(tasks) * (pixels + 12 * coarse * len(_blobs(params))) / 1.5e7
    return {
        "micrographs": len(tasks),
        "blobs": len(_blobs(params)),
        "memory per worker (MiB)": math.ceil(COPIES * 4 * pixels / 2**20),
        "estimate (s per core)": round(seconds, 1),
    }


STAGE = Stage(
    name="pick blob",
    summary="pick particles as disks, rings or ellipses between two diameters",
    params=Params,
    inputs=(Input("micrographs", "micrographs"),),
    run=run,
    plan=plan,
)

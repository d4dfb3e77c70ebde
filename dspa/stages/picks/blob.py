"""Pick particles without a template: disks, rings and ellipses between two diameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs
from dspa.ops.picks.candidates import Candidates, PickRules, pick_blobs
from dspa.ops.picks.templates import SHAPES, Blob, blob_diameters, blob_set
from dspa.stages.exposures.tasks import COPIES, MicrographTask, micrograph_tasks, warn_of_rows
from dspa.stages.picks.search import pick_micrographs
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dspa.ops.picks.search_image import SearchImage


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa pick blob``."""

    min_diameter: float = param(
        help="Smallest particle diameter.", unit="A", minimum=20, maximum=5000
    )
    max_diameter: float = param(
        help="Largest particle diameter.", unit="A", maximum=5000, minimum=20
    )
    shapes: str = param("circle", "Comma-separated: circle (or disk), ring, ellipse.")
    size_ratio: float = param(
        1.2, "Ratio of one blob's diameter to the next.", minimum=1.02, maximum=3
    )
    low_pass: float = param(
        20.0, "Low-pass of micrographs and blobs.", unit="A", minimum=3, maximum=1000
    )
    use_ctf: bool = param(True, "See the blobs through each micrograph's CTF.")
    min_separation: float = param(
        1.0, "Smallest distance of two picks over the smallest diameter.", minimum=0.1, maximum=5
    )
    edge: float = param(
        0.25,
        "Nearest a pick may lie to the edge, over the smallest diameter.",
        minimum=0,
        maximum=100,
    )
    threshold: float = param(0.0, "Lowest NCC kept as a candidate.", minimum=-1, maximum=1)
    max_picks: int = param(4000, "Most candidates of a micrograph.", minimum=1, maximum=10_000_000)
    micrographs: int = param(
        0,
        "Only so many micrographs, spread over the set (0: all).",
        minimum=0,
        maximum=1_000_000_000,
    )

    def together(self) -> None:
        """Refuse diameters in the wrong order, and shapes that are not known."""
        _blobs(self)


def _blobs(params: Params) -> list[Blob]:
    if params.max_diameter < params.min_diameter:
        raise InputError("--max-diameter is below --min-diameter; swap them")
    shapes = tuple(word.strip() for word in params.shapes.split(",") if word.strip())
    if not shapes or any(word not in SHAPES for word in shapes):
        raise InputError(f"--shapes is {params.shapes!r}; use some of {', '.join(SHAPES)}")
    diameters = blob_diameters(params.min_diameter, params.max_diameter, ratio=params.size_ratio)
    return blob_set(shapes, diameters)


def _search(
    params: Params, task: MicrographTask, field: SearchImage, resolution: float
) -> Candidates:
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
    warn_of_rows(context, micrographs)
    blobs = _blobs(params)
    return pick_micrographs(
        context,
        micrographs,
        micrograph_tasks(micrographs, limit=params.micrographs),
        search=partial(_search, params),
        params=params,
        low_pass=params.low_pass,
        diameter=params.max_diameter,
        stage="pick blob",
        means=counted(len(blobs), "blob"),
    )


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
    grows=True,
)

"""What ``pick blob`` and ``pick template`` do alike: search all micrographs and show the picks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.ops.picks.candidates import Candidates
from dspa.ops.picks.search_image import SearchImage, search_image
from dspa.stages.exposures.tasks import (
    MicrographTask,
    contained,
    keep_results,
    report_failures,
)
from dspa.stages.picks.inspect import scores, suggested
from dspa.stages.picks.junk_masks import write_junk
from dspa.stages.picks.tables import picks_table, show_candidates, show_scores, write_picks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import xarray as xr

    from dspa.stages.stage import Context


def pick_micrographs(
    context: Context,
    micrographs: xr.Dataset,
    tasks: Sequence[MicrographTask],
    *,
    search: Callable[[MicrographTask, SearchImage, float], Candidates],
    params: Any,
    low_pass: float,
    diameter: float,
    stage: str,
    means: str,
) -> Mapping[str, Path]:
    """Search every micrograph, a task each; write the picks and show which are likely.

    Parameters
    ----------
    context : Context
    micrographs : Dataset
        The whole table.
    tasks : sequence of MicrographTask
        Those of it that are searched.
    search : callable
        Picklable; takes the micrograph, its search image and the low-pass used (A).
    params : dataclass
        Of the stage.
    low_pass : float
        Asked for, A; never finer than three pixels.
    diameter : float
        Largest of a particle, A.
    stage, means : str
        Name of the stage, and what it searched with, for messages.
    """
    one = partial(_pick, search, low_pass, diameter, context.folder)
    keep = keep_results(context, params, Candidates)
    results = context.runner.map(one, tasks, name="pick", keep=keep)
    report_failures(context, tasks, results, what=stage)
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
    typical = float(np.median(likely)) if likely.size else diameter
    show_scores(context, picks)
    show_candidates(context, done, likely=good, label="likely", diameter=typical)
    count = int(picks.sizes["particle"])
    context.events.message(
        f"{counted(count, 'candidate')} on {counted(len(done), 'micrograph')} with {means}; "
        f"{likely.size} likely ({limits.words()}), median diameter {typical:.0f} A; next: dspa "
        "inspect-picks"
    )
    context.events.emit("result", candidates=count, likely=int(likely.size), diameter=typical)
    return outputs


def _pick(
    search: Callable[[MicrographTask, SearchImage, float], Candidates],
    low_pass: float,
    diameter: float,
    folder: Path,
    task: MicrographTask,
) -> Candidates | str:
    def pick() -> Candidates:
        """Search one micrograph, and keep its junk mask."""
        resolution = max(low_pass, 3.0 * task.pixel_size)
        field = search_image(
            task.read(),
            pixel_size=task.pixel_size,
            resolution=resolution,
            diameter=diameter,
            sign=task.sign,
        )
        write_junk(folder, task.index, field.junk)
        return search(task, field, resolution)

    return contained(pick)

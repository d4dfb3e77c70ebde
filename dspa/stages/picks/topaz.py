"""Pick particles with a topaz model (Bepler 2019, doi:10.1038/s41592-019-0575-8)."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs
from dspa.ops.picks.candidates import Candidates
from dspa.ops.picks.model_threshold import model_threshold
from dspa.ops.picks.power import power_map
from dspa.ops.picks.search_image import search_image
from dspa.stages.exposures.tasks import (
    COPIES,
    MicrographTask,
    contained,
    micrograph_tasks,
    report_failures,
    warn_of_rows,
)
from dspa.stages.picks.tables import picks_table, show_candidates, show_scores, write_picks
from dspa.stages.picks.topaz_files import (
    coarse_micrograph,
    read_card,
    read_scores,
    stem,
    write_coarse,
)
from dspa.stages.picks.topaz_program import Topaz, find_topaz
from dspa.stages.picks.topaz_set import DIAMETER_PIXELS
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

# Models that come with topaz.
PRETRAINED = ("resnet8_u32", "resnet8_u64", "resnet16_u32", "resnet16_u64")
# Log-odds are squeezed into 0..1 as 1 / (1 + exp(-s / SOFTNESS)): even odds are 0.5, and beyond
# them scores stay apart that a plain probability would pile up at 1.
SOFTNESS = 4.0
# Micrographs that one run of topaz takes: it needs seconds to start.
BATCH = 16


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa pick topaz``."""

    diameter: float | None = param(
        None, "Particle diameter (default: as trained).", unit="A", minimum=20, maximum=5000
    )
    working_pixel_size: float | None = param(
        None,
        "Pixel size of what topaz sees (default: as trained).",
        unit="A",
        minimum=1,
        maximum=1000,
    )
    pretrained: str | None = param(
        None, "A model that comes with topaz, instead of --model.", choices=PRETRAINED
    )
    threshold: float = param(
        -6.0, "Lowest log-odds kept as a candidate.", minimum=-1e12, maximum=1e12
    )
    min_separation: float = param(
        0.6, "Smallest distance of two picks over the diameter.", minimum=0.1, maximum=5
    )
    edge: float = param(
        0.25, "Nearest a pick may lie to the edge, over the diameter.", minimum=0, maximum=100
    )
    low_pass: float = param(
        20.0, "Low-pass for the power score.", unit="A", minimum=3, maximum=1000
    )
    max_picks: int = param(4000, "Most candidates of a micrograph.", minimum=1, maximum=10_000_000)
    micrographs: int = param(
        0,
        "Only so many micrographs, spread over the set (0: all).",
        minimum=0,
        maximum=1_000_000_000,
    )
    device: int = param(
        0, "GPU; -1 for the CPU, which it takes if there is none.", minimum=-1, maximum=1000
    )
    topaz: str = param("", "The topaz program (default: DSPA_TOPAZ, or topaz on the path).")


@dataclass(frozen=True)
class _Search:
    """What every task is told."""

    topaz: Topaz
    model: str
    diameter: float
    pixel_size: float
    folder: Path
    params: Params

    def radius(self, pixel_size: float) -> int:
        """Least distance of two picks, in pixels of this size."""
        return max(1, round(self.params.min_separation * self.diameter / pixel_size))


@dataclass(frozen=True)
class _Batch:
    number: int
    tasks: tuple[MicrographTask, ...]


@dataclass(frozen=True)
class _Prepared:
    """What is kept of a micrograph while topaz looks at it.

    Attributes
    ----------
    scale : (2,)
        Micrograph pixels per pixel that topaz sees, along (x, y).
    shape : tuple of int
        Rows and columns of what topaz sees.
    power : (y, x) float32
        Power score on the search image.
    junk : (y, x) bool
        Where not to pick, on the search image.
    step : (2,)
        Micrograph pixels per pixel of the search image, along (x, y).
    """

    scale: tuple[float, float]
    shape: tuple[int, int]
    power: NDArray[np.float32]
    junk: NDArray[np.bool_]
    step: tuple[float, float]


@dataclass(frozen=True)
class _Scored:
    """Candidates and the log-odds of each."""

    found: Candidates
    score: NDArray[np.float32]


def squeezed(score: NDArray[np.float64]) -> NDArray[np.float32]:
    """Bring log-odds to 0..1, to stand where other pickers have the NCC; 0.5 is even odds."""
    with np.errstate(over="ignore"):
        shape: NDArray[np.float32] = (1.0 / (1.0 + np.exp(-score / SOFTNESS))).astype(np.float32)
    return shape


def _prepare(search: _Search, folder: Path, task: MicrographTask) -> _Prepared:
    """Write what topaz will see, and measure power and junk on the search image."""
    coarse, scale = coarse_micrograph(task, pixel_size=search.pixel_size)
    write_coarse(folder / f"{stem(task.index)}.mrc", coarse, pixel_size=search.pixel_size)
    resolution = max(search.params.low_pass, 3.0 * task.pixel_size)
    field = search_image(
        task.read(),
        pixel_size=task.pixel_size,
        resolution=resolution,
        diameter=search.diameter,
        sign=task.sign,
    )
    power = power_map(field, diameter=search.diameter, resolution=resolution)
    shape = (int(coarse.shape[0]), int(coarse.shape[1]))
    return _Prepared(scale, shape, power, field.junk, field.scale)


def _collect(
    search: _Search,
    task: MicrographTask,
    prepared: _Prepared,
    table: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> _Scored:
    """Bring topaz's picks back to the micrograph, off junk and edges, with their power."""
    at, score = table
    position = at * np.asarray(prepared.scale)
    place = np.rint(position / np.asarray(prepared.step)).astype(int)
    rows, columns = prepared.power.shape
    place = np.clip(place, 0, [columns - 1, rows - 1])
    index = (place[:, 1], place[:, 0])
    margin = search.params.edge * search.diameter / task.pixel_size
    height, width = (n * s for n, s in zip(prepared.shape, prepared.scale[::-1], strict=True))
    inside = np.all((position >= margin) & (position <= [width - margin, height - margin]), axis=1)
    keep = np.flatnonzero(inside & ~prepared.junk[index])
    keep = keep[np.argsort(-score[keep], kind="stable")][: search.params.max_picks]
    count = keep.size
    found = Candidates(
        position[keep],
        squeezed(score[keep]),
        prepared.power[index][keep],
        np.zeros(count, np.int32),
        np.zeros(count, np.float32),
        np.full(count, search.diameter, np.float32),
    )
    return _Scored(found, score[keep].astype(np.float32))


def _pick(search: _Search, batch: _Batch) -> list[_Scored | str]:
    """Run topaz over a batch of micrographs; a sentence for each that cannot be used."""
    folder = search.folder / f"batch{batch.number:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        prepared = [contained(partial(_prepare, search, folder, task)) for task in batch.tasks]
        good = [
            task
            for task, made in zip(batch.tasks, prepared, strict=True)
            if not isinstance(made, str)
        ]
        tables = _extract(search, folder, [stem(task.index) for task in good]) if good else {}
        nothing = (np.zeros((0, 2)), np.zeros(0))
        return [
            made if isinstance(made, str)
            else _collect(search, task, made, tables.get(stem(task.index), nothing))
            for task, made in zip(batch.tasks, prepared, strict=True)
        ]  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(
    search: _Search, folder: Path, names: Sequence[str]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    options = {
        "model": search.model,
        "radius": search.radius(search.pixel_size),
        "threshold": search.params.threshold,
        "device": search.params.device,
        "num-threads": search.topaz.threads,
        "output": "scores.txt",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    search.topaz.run(["extract", *words, *(f"{name}.mrc" for name in names)], folder=folder)
    return read_scores(folder / "scores.txt")


def _search(folder: Path, inputs: Mapping[str, Any], params: Params) -> _Search:
    """Settle model, diameter and pixel size."""
    given = inputs.get("model")
    if bool(given) == bool(params.pretrained):
        raise InputError(
            f"give either --model (a job of topaz train, or its file) or --pretrained, "
            f"one of {', '.join(PRETRAINED)}"
        )
    card = read_card(Path(given)) if given else None
    diameter = params.diameter or (card.diameter if card else None)
    if diameter is None:
        raise InputError("the model does not say how large the particles are; give --diameter")
    pixel_size = params.working_pixel_size or (
        card.pixel_size if card else diameter / DIAMETER_PIXELS
    )
    model = str(Path(given).absolute()) if given else str(params.pretrained)
    topaz = Topaz(find_topaz(params.topaz))
    return _Search(topaz, model, diameter, pixel_size, folder / "scratch", params)


def _batches(tasks: Sequence[MicrographTask], workers: int) -> list[_Batch]:
    """Share micrographs out: as many to a run of topaz as leave no worker idle."""
    size = max(1, min(BATCH, math.ceil(len(tasks) / workers)))
    starts = range(0, len(tasks), size)
    return [_Batch(n, tuple(tasks[at : at + size])) for n, at in enumerate(starts)]


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Score every micrograph with the model; some micrographs a task."""
    search = _search(context.folder, inputs, params)
    micrographs = read_micrographs(inputs["micrographs"])
    warn_of_rows(context, micrographs)
    tasks = micrograph_tasks(micrographs, limit=params.micrographs)
    batches = _batches(tasks, context.runner.workers)
    try:
        made = context.runner.map(partial(_pick, search), batches, name="pick")
    finally:
        shutil.rmtree(search.folder, ignore_errors=True)
    results = [result for batch in made for result in batch]
    report_failures(context, tasks, results, what="pick topaz")
    pairs = [
        (task, result)
        for task, result in zip(tasks, results, strict=True)
        if isinstance(result, _Scored)
    ]
    done = [(task, scored.found) for task, scored in pairs]
    picks = picks_table(micrographs, done)
    # The model has seen every defocus: its score needs no trend taken out.
    picks["ncc_relative"] = picks["ncc"]
    picks["model_score"] = ("particle", np.concatenate([s.score for _, s in pairs]))
    outputs = write_picks(context.folder, picks)
    cut = model_threshold(picks["model_score"].values)
    likely = int((picks["model_score"].values >= cut).sum())
    lowest = float(squeezed(np.array([cut]))[0])
    show_scores(context, picks, shape="model score")
    show_candidates(
        context,
        done,
        likely=picks["model_score"].values >= cut,
        label=f"model score at least {lowest:.2f}",
        diameter=search.diameter,
    )
    count = int(picks.sizes["particle"])
    context.events.message(
        f"{counted(count, 'candidate')} on {counted(len(done), 'micrograph')}, {likely} above a "
        f"model score of {lowest:.2f} (log-odds {cut:.1f}); next: dspa inspect-picks"
    )
    context.events.emit("result", candidates=count, likely=likely, diameter=search.diameter)
    return outputs


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Estimate work and memory."""
    search = _search(Path(), inputs, params)
    tasks = micrograph_tasks(read_micrographs(inputs["micrographs"]), limit=params.micrographs)
    pixels = tasks[0].read().size
    return {
        "topaz": search.topaz.path,
        "micrographs": len(tasks),
        "pixel size of topaz (A)": round(search.pixel_size, 2),
        "memory per worker (MiB), topaz apart": math.ceil(COPIES * 4 * pixels / 2**20),
    }


STAGE = Stage(
    name="pick topaz",
    summary="pick particles with a topaz model",
    params=Params,
    inputs=(
        Input("micrographs", "micrographs"),
        Input("model", "model", positional=False, optional=True,
              help="A job of topaz train, or a model file that you trust: it can run code."),
    ),
    run=run,
    plan=plan,
    contained=False,
)  # fmt: skip

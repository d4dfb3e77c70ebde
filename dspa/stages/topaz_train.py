"""Train topaz on picks: positive-unlabelled learning (Bepler 2019, doi:10.1038/s41592-019-0575-8).

Each epoch is a run of ``topaz train`` of its own that begins with the model of the one before. So
a killed job goes on after its last epoch, with the bits that an undisturbed one would have had.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.checkpoint import write_atomically
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.io.picture import Circles, curves, image, side_by_side
from dspa.stages.extract_table import find_micrographs
from dspa.stages.micrograph_tasks import (
    MicrographTask,
    contained,
    micrograph_tasks,
    report_failures,
)
from dspa.stages.stage import Context, Input, Stage, param
from dspa.stages.topaz_files import (
    FIELD,
    ModelCard,
    TrainingTable,
    coarse_micrograph,
    coordinate_table,
    stem,
    write_coarse,
    write_table,
)
from dspa.stages.topaz_program import SEEDED, Topaz, find_topaz

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

# Width of a particle in the pixels that topaz sees: well within what a resnet sees (71), and
# coarse enough to be quick.
DIAMETER_PIXELS = 20.0
# Particles expected over particles picked: pickers miss some, and some were thresholded away.
MISSED = 1.25
METHODS = ("GE-binomial", "GE-KL", "PU", "PN")


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa topaz train``; names and defaults of topaz where it has them."""

    diameter: float | None = param(
        None, "Particle diameter (default: of the picks).", unit="A", minimum=20, maximum=5000
    )
    working_pixel_size: float | None = param(
        None, "Pixel size of what topaz sees (default: the diameter over 20).", unit="A", minimum=1
    )
    num_particles: float | None = param(
        None, "Particles expected on a micrograph (default: 1.25 times the picks).", minimum=1
    )
    model: str = param("resnet8", "Architecture.", choices=tuple(FIELD))
    units: int = param(32, "Units of its first layer.", minimum=1, maximum=1024)
    pretrained: bool = param(True, "Begin with topaz's own weights, where it has any.")
    method: str = param("GE-binomial", "Objective.", choices=METHODS)
    radius: int = param(
        3, "Pixels around a pick that count as particle.", unit="px", minimum=0, maximum=50
    )
    num_epochs: int = param(10, "Epochs.", minimum=1, maximum=1000)
    epoch_size: int = param(1000, "Updates of an epoch.", minimum=1)
    minibatch_size: int = param(256, "Images of an update.", minimum=2)
    learning_rate: float = param(0.0002, "Learning rate.", minimum=1e-8, maximum=1)
    k_fold: int = param(5, "One micrograph in so many is held out to test.", minimum=2)
    device: int = param(0, "GPU; -1 for the CPU, which it takes if there is none.", minimum=-1)
    topaz: str = param("", "The topaz program (default: DSPA_TOPAZ, or topaz on the path).")


@dataclass(frozen=True)
class _Example:
    """A micrograph with picks. Positions (p, 2) in A."""

    task: MicrographTask
    places: NDArray[np.float64]


@dataclass(frozen=True)
class _Plan:
    """What is trained on."""

    examples: tuple[_Example, ...]
    diameter: float
    pixel_size: float


def _plan(inputs: Mapping[str, Any], params: Params) -> _Plan:
    """Bring picks and micrographs together, and settle diameter and pixel size."""
    source = inputs.get("particles") or inputs.get("picks")
    if not source:
        raise InputError("topaz train needs picks: name a job or file, or --particles")
    picks = read_particles(source)
    tasks = micrograph_tasks(read_micrographs(inputs["micrographs"]))
    if "coordinate" not in picks:
        raise InputError(f"{source}: there are no coordinates to train on")
    places = np.array(picks["coordinate"].values, np.float64)
    if "shift" in picks:
        places -= np.nan_to_num(np.asarray(picks["shift"].values, np.float64))
    where = find_micrographs(picks, [task.name for task in tasks])
    where[~np.isfinite(places).all(axis=1)] = -1
    found = np.unique(where[where >= 0])
    if not found.size:
        raise InputError(f"{source}: none of the picks lies on a micrograph of this set")
    examples = tuple(_Example(tasks[row], places[where == row]) for row in found)
    diameter = params.diameter or _diameter(picks, source)
    pixel_size = params.working_pixel_size or diameter / DIAMETER_PIXELS
    pixel_size = max(pixel_size, *(example.task.pixel_size for example in examples))
    wide, seen = math.ceil(diameter / pixel_size), FIELD[params.model]
    if wide > seen:
        raise InputError(
            f"a particle would be {wide} px wide and {params.model} sees {seen}; "
            f"use --working-pixel-size {diameter / DIAMETER_PIXELS:.3g}"
        )
    return _Plan(examples, diameter, pixel_size)


def _diameter(picks: xr.Dataset, source: Path) -> float:
    if "pick_diameter" in picks and np.isfinite(picks["pick_diameter"].values).any():
        return float(np.nanmedian(picks["pick_diameter"].values))
    raise InputError(f"{source} does not say how large the particles are; give --diameter")


def _prepare(folder: Path, pixel_size: float, task: MicrographTask) -> tuple[float, float] | str:
    return contained(partial(_write, folder, pixel_size, task))


def _write(folder: Path, pixel_size: float, task: MicrographTask) -> tuple[float, float]:
    """Write the coarse image of a micrograph; micrograph pixels per coarse pixel."""
    coarse, scale = coarse_micrograph(task, pixel_size=pixel_size)
    size = task.pixel_size * math.sqrt(scale[0] * scale[1])
    write_coarse(folder / f"{stem(task.index)}.mrc", coarse, pixel_size=size)
    return scale


def held_out(counts: Sequence[int], folds: int, *, seed: int) -> NDArray[np.bool_]:
    """Choose micrographs to test on: one of every so many, from crowded to empty ones.

    Parameters
    ----------
    counts : sequence of int
        Picks of each micrograph.
    folds : int
        One in so many; at least one, and none of a single micrograph.
    seed : int
    """
    chosen = np.zeros(len(counts), bool)
    if len(counts) < 2:
        return chosen
    order = np.argsort(np.asarray(counts), kind="stable")
    rng = np.random.default_rng([seed, len(counts)])
    for group in np.array_split(order, max(1, len(counts) // folds)):
        chosen[rng.choice(group)] = True
    return chosen


def _write_tables(
    folder: Path, places: Mapping[str, NDArray[np.float64]], tested: NDArray[np.bool_]
) -> list[str]:
    """Write the lists of images and picks for both splits; the options that name them."""
    options: list[str] = []
    for split, chosen in (("train", ~tested), ("test", tested)):
        if not chosen.any():
            continue
        names = [name for name, mine in zip(places, chosen, strict=True) if mine]
        paths = [f"images/{name}.mrc" for name in names]  # relative: topaz splits at blanks
        write_table(folder / f"{split}_images.txt", {"image_name": names, "path": paths})
        table = coordinate_table({name: places[name] for name in names})
        write_table(folder / f"{split}_picks.txt", table)
        options += [f"--{split}-images", f"{split}_images.txt"]
        options += [f"--{split}-targets", f"{split}_picks.txt"]
    return options


class _Epoch:
    """Listens to one epoch: updates to the progress, the rest to the log."""

    def __init__(self, context: Context, number: int, updates: int) -> None:
        self.context, self.number, self.updates = context, number, updates
        self.table, self.seeded = TrainingTable(), False
        self.losses: list[float] = []
        self.test: dict[str, Any] = {}

    def __call__(self, line: str) -> None:
        """Take one line of what topaz prints."""
        row = self.table.row(line)
        if row is None:
            self.seeded |= line == SEEDED
            if "\t" not in line:
                self.context.events.emit("output", text=f"topaz: {line}")
        elif row["split"] == "test":
            self.test = row
        else:
            self.losses.append(float(row.get("loss", math.nan)))
            self.context.events.emit(
                "progress", task=f"epoch {self.number}", done=len(self.losses),
                total=self.updates, loss=self.losses[-1],
            )  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Return what the epoch came to; NaN where nothing was held out."""
        if not self.losses:
            raise InputError("topaz train printed no table of losses; try a newer topaz")
        figures = {"epoch": self.number, "loss": float(np.mean(self.losses))}
        for name in ("loss", "precision", "tpr", "fpr", "auprc"):
            figures[f"test_{name}"] = float(self.test.get(name, math.nan))
        return figures


def _train(
    context: Context, topaz: Topaz, folder: Path, fixed: Sequence[str], params: Params
) -> list[dict[str, Any]]:
    """Run the epochs that were not run yet; the figures of all."""
    record = folder / "epochs.json"
    done: list[dict[str, Any]] = json.loads(record.read_text()) if record.exists() else []
    if done:
        context.events.message(f"going on after epoch {len(done)}")
    for number in range(len(done) + 1, params.num_epochs + 1):
        model = ["--model", params.model, "--units", str(params.units)]
        model += ["--pretrained" if params.pretrained else "--no-pretrained"]
        if done:
            model = ["--model", f"epoch{number - 1:04d}.sav"]
        heard = _Epoch(context, number, params.epoch_size)
        options = [*fixed, *model, "--num-epochs", "1", "--save-prefix", "new"]
        seed = int(np.random.default_rng([context.seed, number]).integers(2**31))
        topaz.run(["train", *options], folder=folder, told=heard, seed=seed)
        made = sorted(folder.glob("new_epoch*.sav"))
        if len(made) != 1:
            raise InputError("topaz train wrote no model; look into log.txt")
        made[0].replace(folder / f"epoch{number:04d}.sav")
        done.append(heard.figures())
        _record(record, done)
        if number == 1 and not heard.seeded:
            context.events.warning("this topaz takes no seed: the training will not repeat exactly")
        figures = {name: value for name, value in done[-1].items() if name != "epoch"}
        context.events.emit("iteration", iteration=number, iterations=params.num_epochs, **figures)
        context.events.picture("training", training_picture(done), title="training")
    return done


def _record(path: Path, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures of the epochs that are done."""
    text = json.dumps(epochs).encode()
    write_atomically(path, lambda stream: stream.write(text))


def training_picture(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw loss, and precision and area under the precision-recall curve, over epochs.

    Parameters
    ----------
    epochs : sequence of mapping
        Figures of each.
    """
    x = [row["epoch"] for row in epochs]

    def column(name: str) -> NDArray[np.float64]:
        return np.array([row[name] for row in epochs], np.float64)

    tested = bool(np.isfinite(column("test_auprc")).any())
    loss = {"training": column("loss")} | ({"held out": column("test_loss")} if tested else {})
    panels = [curves(x, loss, title="loss", xlabel="epoch", ylabel="loss")]
    if tested:
        area = {"AUPRC": column("test_auprc"), "recall (TPR)": column("test_tpr")}
        panels.append(curves(x, area, title="held-out micrographs", xlabel="epoch", ylim=(0, 1)))
    return side_by_side(panels)


def _show(context: Context, example: _Example, plan: _Plan) -> None:
    """Draw the picks on an image as topaz sees it: a wrong scale shows at once."""
    coarse, scale = coarse_micrograph(example.task, pixel_size=plan.pixel_size)
    size = example.task.pixel_size * math.sqrt(scale[0] * scale[1])
    at = example.places / (example.task.pixel_size * np.asarray(scale))
    circles = [Circles(at, 0.5 * plan.diameter / size, "#00e08a", f"picks: {len(at)}")]
    png = image(coarse, circles=circles, pixel_size=size, title=Path(example.task.name).name)
    context.events.picture("examples", png, title="picks on what topaz sees")


def _options(topaz: Topaz, expected: float, params: Params) -> list[str]:
    """Return what every epoch is told."""
    options = {
        "num-particles": expected,
        "radius": params.radius,
        "method": params.method,
        "epoch-size": params.epoch_size,
        "minibatch-size": params.minibatch_size,
        "learning-rate": params.learning_rate,
        "device": params.device,
        "num-threads": topaz.threads,
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def _set_up(context: Context, folder: Path, plan: _Plan, params: Params) -> tuple[list[str], float]:
    """Write coarse micrographs and tables; the options that name them, particles expected."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    tasks = [example.task for example in plan.examples]
    prepare = partial(_prepare, images, plan.pixel_size)
    scales = context.runner.map(prepare, tasks, name="prepare")
    report_failures(context, tasks, scales, what="topaz train")
    used = [
        (example, example.places / (np.asarray(scale) * example.task.pixel_size))
        for example, scale in zip(plan.examples, scales, strict=True)
        if not isinstance(scale, str)
    ]
    counts = [len(at) for _, at in used]
    tested = held_out(counts, params.k_fold, seed=context.seed)
    expected = params.num_particles or MISSED * float(np.mean(counts))
    _show(context, used[0][0], plan)
    context.events.message(
        f"{sum(counts)} picks on {len(counts)} micrographs, {int(tested.sum())} of them held out; "
        f"{expected:.0f} particles expected on each; {plan.pixel_size:.2f} A a pixel, a particle "
        f"{plan.diameter / plan.pixel_size:.0f} px wide"
    )
    if not tested.any():
        context.events.warning("of one micrograph none can be held out: the last epoch is kept")
    places = {stem(example.task.index): at for example, at in used}
    return _write_tables(folder, places, tested), expected


def _keep_best(
    context: Context, folder: Path, done: Sequence[Mapping[str, Any]], plan: _Plan, params: Params
) -> Mapping[str, Path]:
    """Keep the model of the best epoch and the table of all; the rest goes."""
    areas = np.array([row["test_auprc"] for row in done], np.float64)
    best = int(np.nanargmax(areas)) if np.isfinite(areas).any() else len(done) - 1
    area = float(areas[best])
    number = int(done[best]["epoch"])
    model, table = context.folder / "model.sav", context.folder / "training.txt"
    shutil.copyfile(folder / f"epoch{number:04d}.sav", model)
    known = area if math.isfinite(area) else None
    ModelCard(plan.diameter, plan.pixel_size, params.model, number, known).write(model)
    write_table(table, {name: [row[name] for row in done] for name in done[0]})
    shutil.rmtree(folder)
    context.events.message(
        f"epoch {number} is the best of {len(done)}"
        + (f", AUPRC {area:.3f} on the micrographs held out" if known is not None else "")
        + "; next: dspa pick topaz"
    )
    context.events.emit("result", epoch=number, auprc=known, diameter=plan.diameter)
    return {"model": model, "training": table}


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> Mapping[str, Path]:
    """Write coarse micrographs and picks, train, keep the best epoch."""
    topaz = Topaz(find_topaz(params.topaz), threads=context.runner.workers)
    plan = _plan(inputs, params)
    folder = context.folder / "training"
    try:
        fixed, expected = _set_up(context, folder, plan, params)
        fixed += _options(topaz, expected, params)
        done = _train(context, topaz, folder, fixed, params)
    finally:
        shutil.rmtree(folder / "images", ignore_errors=True)
    return _keep_best(context, folder, done, plan, params)


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Estimate work."""
    found = _plan(inputs, params)
    return {
        "topaz": find_topaz(params.topaz),
        "micrographs": len(found.examples),
        "picks": sum(len(example.places) for example in found.examples),
        "pixel size of topaz (A)": round(found.pixel_size, 2),
        "updates": params.num_epochs * params.epoch_size,
    }


STAGE = Stage(
    name="topaz train",
    summary="train topaz on the picks of a job",
    params=Params,
    inputs=(
        Input("picks", "picks", optional=True),
        Input("micrographs", "micrographs"),
        Input(
            "particles", "particles", positional=False, optional=True,
            help="Particles to train on instead of picks, of 2D classes that were selected.",
        ),
    ),
    run=run,
    plan=plan,
)  # fmt: skip

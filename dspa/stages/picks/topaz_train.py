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

from dspa.data.atomic import write_atomically
from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.picture import Circles, curves, image, side_by_side
from dspa.stages.exposures.tasks import (
    MicrographTask,
    contained,
    report_failures,
)
from dspa.stages.picks.topaz_files import (
    FIELD,
    ModelCard,
    TrainingTable,
    coarse_micrograph,
    stem,
    write_coarse,
    write_table,
)
from dspa.stages.picks.topaz_program import SEEDED, Topaz, find_topaz
from dspa.stages.picks.topaz_set import (
    Example,
    Labels,
    TrainingSet,
    held_out,
    positive_fraction,
    training_set,
    write_tables,
)
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

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
        None,
        "Pixel size of what topaz sees (default: the diameter over 20).",
        unit="A",
        minimum=1,
        maximum=1000,
    )
    num_particles: float | None = param(
        None,
        "Particles expected on a micrograph (default: 1.25 times the picks).",
        minimum=1,
        maximum=1000000,
    )
    model: str = param("resnet8", "Architecture.", choices=tuple(FIELD))
    units: int = param(32, "Units of its first layer.", minimum=1, maximum=1024)
    pretrained: bool = param(True, "Begin with topaz's own weights, where it has any.")
    method: str = param("GE-binomial", "Objective.", choices=METHODS)
    radius: int = param(
        3, "Pixels around a pick that count as particle.", unit="px", minimum=0, maximum=50
    )
    num_epochs: int = param(10, "Epochs.", minimum=1, maximum=1000)
    epoch_size: int = param(1000, "Updates of an epoch.", minimum=1, maximum=10_000_000)
    minibatch_size: int = param(256, "Images of an update.", minimum=2, maximum=100000)
    learning_rate: float = param(0.0002, "Learning rate.", minimum=1e-8, maximum=1)
    k_fold: int = param(
        5, "One micrograph in so many is held out to test.", minimum=2, maximum=1000
    )
    device: int = param(
        0, "GPU; -1 for the CPU, which it takes if there is none.", minimum=-1, maximum=1000
    )
    topaz: str = param("", "The topaz program (default: DSPA_TOPAZ, or topaz on the path).")


def _training_set(inputs: Mapping[str, Any], params: Params) -> TrainingSet:
    return training_set(
        inputs,
        diameter=params.diameter,
        pixel_size=params.working_pixel_size,
        model=params.model,
    )


@dataclass(frozen=True)
class _Coarse:
    """An image as topaz sees it: A per pixel along (x, y), and how many pixels."""

    step: tuple[float, float]
    pixels: int


def _prepare(folder: Path, pixel_size: float, task: MicrographTask) -> _Coarse | str:
    return contained(partial(_write, folder, pixel_size, task))


def _write(folder: Path, pixel_size: float, task: MicrographTask) -> _Coarse:
    coarse, scale = coarse_micrograph(task, pixel_size=pixel_size)
    step = (scale[0] * task.pixel_size, scale[1] * task.pixel_size)
    write_coarse(
        folder / f"{stem(task.index)}.mrc", coarse, pixel_size=math.sqrt(step[0] * step[1])
    )
    return _Coarse(step, int(coarse.size))


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
        if number > 1:
            context.events.picture("training", training_picture(done), title="training")
    return done


def _record(path: Path, epochs: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures of the epochs that are done."""
    text = json.dumps(epochs).encode()
    write_atomically(path, lambda stream: stream.write(text))


def training_picture(epochs: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the objective, and how well held-out micrographs are picked, over the epochs.

    Parameters
    ----------
    epochs : sequence of mapping
        Figures of each.
    """

    def column(name: str) -> NDArray[np.float64]:
        return np.array([row[name] for row in epochs], np.float64)

    x = column("epoch")
    panels = [curves(x, {"training": column("loss")}, title="loss", xlabel="epoch")]
    if np.isfinite(column("test_auprc")).any():
        held = {"AUPRC": column("test_auprc"), "precision": column("test_precision")}
        panels.append(curves(x, held, title="held-out micrographs", xlabel="epoch", ylim=(0, 1)))
    return side_by_side(panels)


def _show(context: Context, example: Example, plan: TrainingSet) -> None:
    """Draw the picks on an image as topaz sees it: a wrong scale shows at once."""
    coarse, scale = coarse_micrograph(example.task, pixel_size=plan.pixel_size)
    size = example.task.pixel_size * math.sqrt(scale[0] * scale[1])
    at = example.places / (example.task.pixel_size * np.asarray(scale))
    circles = [Circles(at, 0.5 * plan.diameter / size, "#00e08a", f"picks: {len(at)}")]
    png = image(coarse, circles=circles, pixel_size=size, title=Path(example.task.name).name)
    context.events.picture("examples", png, title="picks on what topaz sees")


@dataclass(frozen=True)
class _Job:
    """What all epochs are told, once images and tables are written.

    Attributes
    ----------
    options : tuple of str
    labels : Labels
    """

    options: tuple[str, ...]
    labels: Labels


def _set_up(context: Context, folder: Path, plan: TrainingSet, params: Params) -> _Job:
    """Write coarse micrographs and tables."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    tasks = [example.task for example in plan.examples]
    prepare = partial(_prepare, images, plan.pixel_size)
    made = context.runner.map(prepare, tasks, name="prepare")
    report_failures(context, tasks, made, what="topaz train")
    used = [
        (example, coarse)
        for example, coarse in zip(plan.examples, made, strict=True)
        if not isinstance(coarse, str)
    ]
    counts = np.array([len(example.places) for example, _ in used])
    tested = held_out(counts.tolist(), params.k_fold, seed=context.seed)
    expected = params.num_particles or MISSED * float(np.mean(counts))
    _show(context, used[0][0], plan)
    context.events.message(
        f"{counted(counts.sum(), 'pick')} on {counted(counts.size, 'micrograph')}, "
        f"{int(tested.sum())} of them held out; "
        f"{expected:.0f} particles expected on each; {plan.pixel_size:.2f} A a pixel, a particle "
        f"{plan.diameter / plan.pixel_size:.0f} px wide"
    )
    if not tested.any():
        context.events.warning("of one micrograph none can be held out: the last epoch is kept")
    places = {stem(e.task.index): e.places / np.asarray(coarse.step) for e, coarse in used}
    return _Job(
        tuple(write_tables(folder, places, tested)),
        Labels(
            float(counts[~tested].sum()),
            expected * float((~tested).sum()),
            sum(coarse.pixels for (_, coarse), out in zip(used, tested, strict=True) if not out),
        ),
    )


class _HeardError(Exception):
    """Topaz has said what share of the pixels it counts as labelled."""

    def __init__(self, share: float) -> None:
        super().__init__(share)
        self.share = share


def _listen_for_share(line: str) -> None:
    """Stop topaz at its line of source, split, share labelled."""
    cells = line.split("\t")
    if len(cells) == 5 and cells[1] == "train":
        raise _HeardError(float(cells[2]))


def _fixed_options(topaz: Topaz, folder: Path, job: _Job, params: Params) -> list[str]:
    """Return what every epoch is told; asks topaz how it counts labels, if that matters."""
    options = {
        "radius": params.radius,
        "method": params.method,
        "minibatch-size": params.minibatch_size,
        "learning-rate": params.learning_rate,
        "device": params.device,
        "num-threads": topaz.threads,
    }
    fixed = [*job.options, *(f"--{name}={value}" for name, value in options.items())]
    counted = None
    if params.method.startswith("GE"):
        try:
            trial = ["--pi=0.5", "--num-epochs=1", "--epoch-size=1"]
            topaz.run(["train", *fixed, *trial], folder=folder, told=_listen_for_share)
            raise InputError("topaz train does not say what it counts as labelled; use --method PU")
        except _HeardError as heard:
            counted = heard.share
    share = positive_fraction(job.labels, radius=params.radius, counted=counted)
    return [*fixed, f"--epoch-size={params.epoch_size}", f"--pi={share:.8g}"]


def _keep_best(
    context: Context,
    folder: Path,
    done: Sequence[Mapping[str, Any]],
    *,
    plan: TrainingSet,
    architecture: str,
) -> Mapping[str, Path]:
    """Keep the model of the best epoch and the table of all; the rest goes."""
    areas = np.array([row["test_auprc"] for row in done], np.float64)
    best = int(np.nanargmax(areas)) if np.isfinite(areas).any() else len(done) - 1
    area = float(areas[best])
    number = int(done[best]["epoch"])
    model, table = context.folder / "model.sav", context.folder / "training.txt"
    shutil.copyfile(folder / f"epoch{number:04d}.sav", model)
    known = area if math.isfinite(area) else None
    ModelCard(plan.diameter, plan.pixel_size, architecture, number, known).write(model)
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
    plan = _training_set(inputs, params)
    folder = context.folder / "training"
    try:
        job = _set_up(context, folder, plan, params)
        fixed = _fixed_options(topaz, folder, job, params)
        done = _train(context, topaz, folder, fixed, params)
    finally:
        shutil.rmtree(folder / "images", ignore_errors=True)
    return _keep_best(context, folder, done, plan=plan, architecture=params.model)


def plan(inputs: Mapping[str, Any], params: Params) -> Mapping[str, Any]:
    """Estimate work."""
    found = _training_set(inputs, params)
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
    contained=False,
)  # fmt: skip

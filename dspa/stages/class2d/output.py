"""What 2D classification shows while it runs, and what it leaves behind."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted_of
from dspa.data.errors import InputError
from dspa.dataflow.events import Pace
from dspa.geometry.rotation import matrix_from_euler
from dspa.io.images import ParticleImages
from dspa.io.particles import write_particle_tables
from dspa.io.picture import curves, montage
from dspa.io.star import Block, write_star
from dspa.io.volumes import write_image_stack
from dspa.ops.images.class_quality import weighted_quantile
from dspa.ops.images.transform import resize_images
from dspa.stages.class2d.constants import tuned
from dspa.stages.class2d.evidence import judge_noise
from dspa.stages.class2d.model import FILE, save_classification
from dspa.stages.particles.duplicates import single, write_split
from dspa.stages.particles.optics import shift_in_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.dataflow.reduction import Rows
    from dspa.stages.class2d.evidence import Evidence
    from dspa.stages.class2d.model import Classification, ClassModel
    from dspa.stages.class2d.plan import ClassPlan
    from dspa.stages.particles.chunks import ImageSpec
    from dspa.stages.stage import Context

AVERAGES = "class_averages.mrcs"
TABLE = "classes.star"
SPAN = 1 << 16  # particles whose poses are made together


@dataclass(frozen=True)
class ClassTable:
    """Figures of every class.

    Attributes
    ----------
    count : (classes,) int64
        Particles whose best class it is.
    resolution : (classes,) float64
        Where the correlation of its half averages falls to 0.5, A.
    certainty : (classes,) float64
        Mean posterior of its particles.
    fit : (classes,) float64
        Mean fit of its particles: standard deviations from what a perfect match would score.
    log_likelihood : (classes,) float64
        Mean gain over an empty average, per particle.
    spread : (classes,) float64
        Effective number of classes its particles are divided over.
    noise, structure : (classes,) float64
        Share of its particles that noise explains; whose structure it explains.
    witness : (classes,) bool
        Whether structure was judged by it.
    """

    count: NDArray[np.int64]
    resolution: NDArray[np.float64]
    certainty: NDArray[np.float64]
    fit: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    spread: NDArray[np.float64]
    noise: NDArray[np.float64]
    structure: NDArray[np.float64]
    witness: NDArray[np.bool_]


def class_table(model: ClassModel, rows: Rows, spec: ImageSpec) -> ClassTable:
    """Gather the figures of the classes from the last pass."""
    classes = model.classes
    member = rows["class_index"]
    inside = member >= 0
    count = np.bincount(member[inside], minlength=classes)

    def mean(name: str) -> NDArray[np.float64]:
        total = np.bincount(member[inside], rows[name][inside].astype(np.float64), classes)
        return np.where(count > 0, total / np.maximum(count, 1), 0.0)

    resolution = np.where(count > 0, spec.extent / model.shell, spec.extent)
    return ClassTable(
        count=count,
        resolution=resolution,
        certainty=mean("posterior"),
        fit=mean("fit"),
        log_likelihood=mean("log_likelihood"),
        spread=mean("spread"),
        noise=mean("noise_probability"),
        structure=mean("structure_noise"),
        witness=np.isin(np.arange(classes), rows["near_class"]),
    )


def sorted_montage(
    averages: NDArray[np.float32], count: NDArray[Any], resolution: NDArray[np.float64]
) -> bytes:
    """Draw averages by falling count; labels say number (from 1), count and resolution."""
    order = np.argsort(-count, kind="stable")
    labels = [f"{c + 1}: {count[c]:.0f}, {resolution[c]:.1f} A" for c in order]
    return montage(averages[order], labels=labels)


@dataclass(frozen=True)
class Progress:
    """Tells the stream of every pass.

    Attributes
    ----------
    events : Events
    spec : ImageSpec
    visits : sequence of int
        Images of each pass.
    after : int
        Images looked at after the last pass.
    """

    events: Events
    spec: ImageSpec
    visits: Sequence[int]
    after: int = 0
    pace: Pace = field(default_factory=Pace)
    thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1))
    drawing: list[tuple[str, Future[bytes]]] = field(default_factory=list)

    def __call__(self, iteration: int, plan: ClassPlan, model: ClassModel) -> None:
        """Emit the figures and the class averages of one pass."""
        count, total = model.count, model.total
        share = count / max(float(count.sum()), 1e-12)
        resolution = self.spec.extent / model.shell
        passes = len(self.visits)
        self.pace.passed(self.visits[iteration - 1])
        to_come = sum(self.visits[iteration:]) + self.after
        self.events.emit(
            "iteration",
            iteration=iteration,
            iterations=passes,
            remaining=self.pace.remaining(to_come),
            particles=int(total.images),
            resolution=weighted_quantile(resolution, count, 0.5),
            alive=int(np.sum(share > tuned().alive / share.size)),
            largest=float(share.max()),
            restarted=int(model.seeded.sum()),
            log_likelihood=total.mean("log_likelihood"),
            effective_classes=total.mean("effective_classes"),
            cells_scored=total.mean("cells_scored"),
            searches_limited=int(total.searches_limited),
            searched_to=self.spec.extent / plan.radius,
        )
        self._show()
        if plan.shown:
            title = f"class averages, pass {iteration} of {passes}"
            # Beside the next pass, which need not wait; it is told here, as all listeners hear of
            # events from this thread.
            drawing = self.thread.submit(sorted_montage, model.averages, count, resolution)
            self.drawing.append((title, drawing))
        if iteration == passes:
            self._show()

    def _show(self) -> None:
        """Tell of the picture that was begun after an earlier pass."""
        while self.drawing:
            title, drawing = self.drawing.pop()
            self.events.picture("class_averages", drawing.result(), title=title)


def write_results(
    context: Context, particles: xr.Dataset, known: Classification, *, distance: float = 0.0
) -> dict[str, Path]:
    """Write averages, tables and pictures of the last pass, and what another can go on from.

    Parameters
    ----------
    context : Context
    particles : Dataset
    known : Classification
        Its first particles are these.
    distance : float
        A: of particles closer than this only the best stays; 0 keeps all.

    Returns
    -------
    outputs : dict
        ``particles``, ``particles_star``, ``classes``, ``class_table``, ``classification``;
        ``duplicates`` if they were removed.
    """
    folder, events, model, spec = context.folder, context.events, known.model, known.spec
    count = int(particles.sizes["particle"])
    rows = {name: values[:count] for name, values in known.rows.items()}
    if not rows["valid"].any():
        raise InputError(
            f"{ParticleImages(particles).stack}: no particle has an image that varies and holds no "
            "NaN; look at the images"
        )
    _report_set_aside(context, rows)
    judged = judge_noise(rows)
    rows |= {"evidence": judged.evidence, "noise_probability": judged.probability}
    rows |= {"structure_noise": judged.structure}
    outputs = {
        "particles": folder / "particles.zarr",
        "particles_star": folder / "particles.star",
        "classes": folder / AVERAGES,
        "class_table": folder / TABLE,
        "classification": folder / FILE,
    }
    classified = assign(particles, rows, spec)
    keep = np.ones(count, bool)
    if distance > 0.0:
        keep = single(classified, events, distance=distance, among=rows["valid"])
        outputs["duplicates"] = write_split(classified, keep, folder)
        rows = {name: values[keep] for name, values in rows.items()}
    else:
        write_particle_tables(classified, folder)
    table = class_table(model, rows, spec)
    averages = np.asarray(model.averages, np.float32)
    save_classification(known, outputs["classification"])
    write_image_stack(
        outputs["classes"], resize_images(averages, spec.box), pixel_size=spec.pixel_size
    )
    write_table(outputs["class_table"], table, spec)
    _draw(events, known, table, judged)
    removed = int((~keep).sum()) if distance > 0.0 else None
    _report_result(events, rows, table, duplicates=removed)
    return outputs


def _report_result(
    events: Events, rows: Rows, table: ClassTable, *, duplicates: int | None
) -> None:
    """Emit the figures of a result, and warn where noise explains most particles."""
    noise = float(rows["noise_probability"][rows["valid"]].mean())
    if noise > tuned().mostly_noise:
        events.warning(
            f"noise explains {100 * noise:.0f} percent of the particles as well as these classes "
            "do; look at the picks, and at the sign of the contrast"
        )
    alive = int(np.sum(table.count > tuned().alive * table.count.mean()))
    events.emit(
        "result",
        particles=int(rows["valid"].sum()),
        set_aside=int((~rows["valid"]).sum()),
        **({} if duplicates is None else {"duplicates": duplicates}),
        classes=alive,
        resolution=weighted_quantile(table.resolution, table.count.astype(np.float64), 0.5),
        effective_classes=float(rows["spread"][rows["valid"]].mean()),
        noise_share=noise,
    )


def _draw(events: Events, known: Classification, table: ClassTable, judged: Evidence) -> None:
    """Emit the pictures of a result."""
    averages = np.asarray(known.model.averages, np.float32)
    events.picture(
        "class_averages",
        sorted_montage(averages, table.count, table.resolution),
        title="class averages: number, particles, resolution",
    )
    if judged.controls.size:
        picture = _evidence_picture(judged)
        events.picture("evidence", picture, title="evidence for a particle, beside noise alone")
    frc = _frc_picture(known.model, table, known.spec)
    events.picture("class_frc", frc, title="ring correlation")


def whole_table(rows: Rows, count: int) -> dict[str, NDArray[Any]]:
    """Return rows with zeros for the particles of the table that no chunk held."""
    ordered = {}
    for name, values in rows.items():
        if name != "item":
            ordered[name] = np.zeros((count, *values.shape[1:]), values.dtype)
            ordered[name][rows["item"]] = values
    return ordered


def assign(particles: xr.Dataset, rows: Rows, spec: ImageSpec) -> xr.Dataset:
    """Return the particles with class, in-plane pose, shift, and how well they fit it."""
    pose = np.empty((len(rows["angle"]), 3, 3))
    for start in range(0, len(pose), SPAN):
        angle = rows["angle"][start : start + SPAN]
        zero = np.zeros(len(angle))
        pose[start : start + SPAN] = matrix_from_euler(zero, zero, angle)
    shift = shift_in_image(particles, rows["shift"] * spec.crop_pixel_size)
    near = np.nan_to_num(np.stack([rows["near_x"], rows["near_y"]], axis=1)).astype(np.float64)
    near = shift_in_image(particles, near)
    return particles.assign(
        class_index=("particle", rows["class_index"].astype(np.int32)),
        pose=(("particle", "i", "j"), pose),
        shift=(("particle", "xy"), shift),
        posterior=("particle", rows["posterior"].astype(np.float32)),
        log_likelihood=("particle", rows["log_likelihood"].astype(np.float32)),
        fit=("particle", rows["fit"].astype(np.float32)),
        scale=("particle", rows["scale"].astype(np.float32)),
        evidence=("particle", rows["evidence"].astype(np.float32)),
        noise_probability=("particle", rows["noise_probability"].astype(np.float32)),
        structure_noise=("particle", rows["structure_noise"].astype(np.float32)),
        near_class=("particle", 1 + np.nan_to_num(rows["near_class"], nan=-1.0).astype(np.int32)),
        near_angle=("particle", np.nan_to_num(rows["near_angle"]).astype(np.float32)),
        near_x=("particle", near[:, 0].astype(np.float32)),
        near_y=("particle", near[:, 1].astype(np.float32)),
    )


def write_table(path: Path, table: ClassTable, spec: ImageSpec) -> None:
    """Write the table of classes, with RELION's labels where it has them."""
    number = np.arange(1, table.count.size + 1)
    general = {
        "rlnOriginalImageSize": np.array([spec.box]),
        "rlnPixelSize": np.array([spec.pixel_size]),
        "rlnNrClasses": np.array([number.size]),
        "dspaMaskDiameter": np.array([spec.mask_diameter]),
    }
    share = table.count / max(int(table.count.sum()), 1)
    names = np.array([f"{n:06d}@{AVERAGES}" for n in number], object)
    columns = {
        "rlnReferenceImage": names,
        "rlnClassNumber": number,
        "rlnClassDistribution": share,
        "rlnEstimatedResolution": table.resolution,
        "dspaParticles": table.count,
        "dspaMeanPosterior": table.certainty,
        "dspaMeanFit": table.fit,
        "dspaMeanLogLikelihood": table.log_likelihood,
        "dspaEffectiveClasses": table.spread,
        "dspaNoiseShare": table.noise,
        "dspaStructureNoise": table.structure,
        "dspaWitness": table.witness.astype(np.int64),
    }
    write_star(path, [Block("model_general", general, loop=False), Block("model_classes", columns)])


def _report_set_aside(context: Context, rows: Rows) -> None:
    """Count and list the images that could not be used."""
    aside = np.flatnonzero(~rows["valid"])
    if aside.size:
        text = "\n".join(str(row) for row in aside.tolist())
        (context.folder / "set_aside.txt").write_text(text + "\n", encoding="utf-8")
        first = ", ".join(str(row) for row in aside[:5].tolist())
        found = counted_of(aside.size, rows["valid"].size, "image", verb=("was", "were"))
        context.events.warning(
            f"{found} set aside (NaN, or nothing in them): rows "
            f"{first}{' ...' if aside.size > 5 else ''} (the first is 0); all in set_aside.txt"
        )


def _evidence_picture(judged: Evidence) -> bytes:
    """Distributions of the evidence of the particles and of the images of noise."""
    known = judged.evidence[np.isfinite(judged.evidence)]
    low, high = np.quantile(known, (0.002, 0.998))
    edges = np.linspace(min(low, judged.controls.min()), max(high, judged.controls.max()), 61)
    shares = {
        name: np.histogram(values, edges)[0] / values.size
        for name, values in (("particles", known), ("noise", judged.controls))
    }
    return curves(
        0.5 * (edges[1:] + edges[:-1]),
        shares,
        title="evidence for a particle: log-likelihood above what half of pure noise attains",
        ylabel="share",
        xlabel="evidence",
    )


def _frc_picture(model: ClassModel, table: ClassTable, spec: ImageSpec) -> bytes:
    """Curves of the sharpest, the middle and the dullest class that is alive."""
    alive = np.flatnonzero(table.count > tuned().alive * table.count.mean())
    order = alive[np.argsort(table.resolution[alive], kind="stable")]
    picks = {"sharpest": order[0], "median": order[len(order) // 2], "dullest": order[-1]}
    shells = np.arange(model.frc.shape[1])
    return curves(
        shells / spec.extent,
        {f"{name} (class {c + 1})": model.frc[c] for name, c in picks.items()},
        title="ring correlation of half averages",
        ylabel="FRC",
        thresholds={"0.5": 0.5},
        resolution=True,
        ylim=(-0.2, 1.02),
    )

"""Keep the particles of good 2D classes: those named, or those that look like particles."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted, counted_of
from dspa.data.errors import InputError
from dspa.io.particles import read_particles, write_particle_tables, write_particles
from dspa.io.picture import montage
from dspa.io.star import Block, find_block, numbers, read_star, write_star
from dspa.io.volumes import read_images, write_image_stack
from dspa.ops.images.class_quality import GOOD, NEIGHBOUR, ClassQuality, judge_classes
from dspa.stages.class2d.admission import admit_particles, moved_to_near
from dspa.stages.class2d.output import AVERAGES, TABLE
from dspa.stages.particles.lead import leading
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.class2d.admission import Admission

# What counts against a class, in words.
_WORDS = {
    "contrast": "no contrast of centre and rim",
    "rim": "too much at the rim",
    "off_centre": "off the centre",
    "lopsided": "something at one side of the rim",
    "strength": "too strong or too weak",
    "resolution": "resolves nothing that others do",
    "log_likelihood": "its particles fit badly",
    "size": "few particles",
    "noise": "noise explains it",
    "structure": "noise explains its structure",
    "neighbour": "a neighbour at the edge",
    "none": "fewer particles than asked for",
}
_LISTED = 20
TRIM = 0.04  # of the particles that are not noise: what --auto gives up to be rid of noise


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa select2d``."""

    classes: tuple[int, ...] = param(
        (),
        "Numbers of the classes to keep, from 1, as in the pictures and in rlnClassNumber.",
        minimum=0,
        maximum=1000000,
    )
    auto: bool = param(False, "Keep the classes that look like particles.")
    threshold: float = param(
        GOOD, "With --auto: lowest score (0 to 1) that is kept.", minimum=0, maximum=1
    )
    trim: float | None = param(
        None,
        "Also reject the particles of good classes that noise explains, those with the least "
        "evidence, as long as this and what is lost in classes of noise give up no more than this "
        f"share of the others (0: none; left out: {TRIM:g} with --auto, 0 with --classes).",
        minimum=0,
        maximum=1,
    )
    min_particles: int = param(
        0, "With --auto: fewest particles of a class.", minimum=0, maximum=1_000_000_000
    )

    def together(self) -> None:
        """Refuse neither or both of classes and auto, and options that would do nothing."""
        if bool(self.classes) == self.auto:
            raise InputError("give either --classes with numbers such as 3,7,9, or --auto")
        for item in fields(self):
            if not self.auto and item.name not in {"classes", "auto", "trim"}:
                value = getattr(self, item.name)
                if value != item.default:
                    option = "--" + item.name.replace("_", "-")
                    raise InputError(
                        f"{option} {value:g} does nothing without --auto; leave it out"
                    )


@dataclass(frozen=True, eq=False)
class Classes:
    """Class averages and what is known of them.

    Attributes
    ----------
    averages : (classes, y, x) float32
    pixel_size : float
        A.
    count : (classes,) int64
        Particles, counted in the table of particles.
    resolution : (classes,) float64
        A; the box where it is not known.
    log_likelihood, noise, structure : (classes,) float64 or None
        Mean over the particles of the class; ``noise`` of the probability of being noise,
        ``structure`` of that that noise explains their structure.
    witness : (classes,) bool or None
        Whether structure was judged by it.
    mask_diameter : float
        A.
    """

    averages: NDArray[np.float32]
    pixel_size: float
    count: NDArray[np.int64]
    resolution: NDArray[np.float64]
    log_likelihood: NDArray[np.float64] | None
    noise: NDArray[np.float64] | None
    structure: NDArray[np.float64] | None
    witness: NDArray[np.bool_] | None
    mask_diameter: float


def read_classes(path: Path, member: NDArray[np.integer[Any]]) -> Classes:
    """Read class averages and, where it lies beside them, their table.

    Parameters
    ----------
    path : Path
        Stack of averages.
    member : (n,) int
        Class of each particle, from 0; -1 none.

    Raises
    ------
    InputError
        If particles name classes that the stack does not hold.
    """
    stack = read_images(path)
    averages = np.asarray(stack.images, np.float32)
    classes = len(averages)
    if member.size and int(member.max()) >= classes:
        raise InputError(
            f"{path}: holds {classes} averages and the particles name class "
            f"{int(member.max()) + 1}; give the averages and the particles of the same job"
        )
    if not np.isfinite(averages).all():
        raise InputError(f"{path}: holds averages that are not finite; classify again")
    count = np.bincount(member[member >= 0], minlength=classes)
    extent = averages.shape[-1] * stack.pixel_size
    table = path.with_name(TABLE)
    columns: dict[str, NDArray[np.float64]] = {}
    mask = 0.9 * extent
    if table.exists():
        blocks = read_star(table)
        found = find_block(blocks, "model_classes")
        if found is not None and found.rows == classes:
            for label in (
                "rlnEstimatedResolution",
                "dspaMeanLogLikelihood",
                "dspaNoiseShare",
                "dspaStructureNoise",
                "dspaWitness",
            ):
                if label in found.columns:
                    columns[label] = numbers(table, label, found.columns[label])
        general = find_block(blocks, "model_general")
        if general is not None and "dspaMaskDiameter" in general.columns:
            mask = float(numbers(table, "dspaMaskDiameter", general.columns["dspaMaskDiameter"])[0])
    resolution = columns.get("rlnEstimatedResolution", np.full(classes, extent))
    gains, noise = columns.get("dspaMeanLogLikelihood"), columns.get("dspaNoiseShare")
    return Classes(
        averages=averages,
        pixel_size=stack.pixel_size,
        count=count,
        resolution=resolution,
        log_likelihood=gains,
        noise=noise,
        structure=columns.get("dspaStructureNoise"),
        witness=columns["dspaWitness"] > 0 if "dspaWitness" in columns else None,
        mask_diameter=mask,
    )


def judge(classes: Classes) -> ClassQuality:
    """Score the classes by their averages."""
    return judge_classes(
        classes.averages,
        classes.count,
        radius=classes.mask_diameter / classes.pixel_size / 2.0,
        resolution=classes.resolution,
        log_likelihood=classes.log_likelihood,
        noise=classes.noise,
        structure=classes.structure,
        witness=classes.witness,
    )


def choose(classes: Classes, quality: ClassQuality, params: Params) -> NDArray[np.bool_]:
    """Say which classes are kept: (classes,) bool.

    Raises
    ------
    InputError
        If neither or both of ``classes`` and ``auto`` are given, a number is not there, or
        nothing would be kept.
    """
    params.together()
    total = len(classes.averages)
    if params.auto:
        keep = (quality.score >= params.threshold) & (classes.count >= params.min_particles)
        if not keep.any():
            raise InputError(
                f"no class scores {params.threshold:g} or more; lower --threshold (the best has "
                f"{quality.score.max():.2f}) or name --classes"
            )
        return keep
    wrong = [c for c in params.classes if not 1 <= c <= total]
    if wrong:
        raise InputError(f"--classes {wrong[0]}: there are classes 1 to {total}")
    keep = np.zeros(total, bool)
    keep[np.array(params.classes) - 1] = True
    if not classes.count[keep].sum():
        raise InputError("the chosen classes hold no particles; choose others")
    return keep


@dataclass(frozen=True, eq=False)
class Choice:
    """Particles, their classes, and which of these are kept.

    Attributes
    ----------
    particles : Dataset
    classes : Classes
    quality : ClassQuality
    keep : (classes,) bool
    """

    particles: xr.Dataset
    classes: Classes
    quality: ClassQuality
    keep: NDArray[np.bool_]


def admit(inputs: Mapping[str, Any], params: Params) -> Choice:
    """Read particles and averages, and choose classes.

    Parameters
    ----------
    inputs : mapping
        As of `run`.
    params : Params

    Raises
    ------
    InputError
        If the particles have no classes, or of `choose`.
    """
    particles = read_particles(inputs["particles"], lazy=True)
    if "class_index" not in particles:
        raise InputError(f"{inputs['particles']}: the particles have no classes; run class2d first")
    member = np.asarray(particles["class_index"].values, np.int64)
    classes = read_classes(Path(inputs["averages"]), member)
    quality = judge(classes)
    return Choice(particles, classes, quality, choose(classes, quality, params))


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Split particles by the quality of their classes.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles`` with classes, ``averages`` (their class averages).
    params : Params

    Returns
    -------
    outputs : dict
        ``particles``, ``particles_star``, ``rejected``, ``classes``, ``class_table``.
    """
    choice = admit(inputs, params)
    particles, classes = choice.particles, choice.classes
    quality, keep = choice.quality, choice.keep
    member = np.asarray(particles["class_index"].values, np.int64)
    trim = (TRIM if params.auto else 0.0) if params.trim is None else params.trim
    admission = admit_particles(particles, quality, keep, threshold=params.threshold, share=trim)
    inside = admission.inside
    _pictures(context, classes, quality, keep)
    outputs = _write(context.folder, particles, admission, renumber(keep))
    write_image_stack(
        context.folder / AVERAGES, classes.averages[keep], pixel_size=classes.pixel_size
    )
    write_scores(
        context.folder / TABLE,
        classes,
        quality,
        keep,
        trimmed=np.bincount(member[admission.trimmed], minlength=keep.size),
        moved=np.bincount(member[admission.moved], minlength=keep.size),
    )
    _tell(context, particles, member < 0, admission)
    if params.auto:
        _tell_classes(context, classes, quality, keep)
    context.events.emit(
        "result",
        particles=int(inside.sum()),
        rejected=int((~inside).sum()),
        trimmed=int(admission.trimmed.sum()),
        moved=int((admission.moved & inside).sum()),
        classes=int(keep.sum()),
        of_classes=len(keep),
    )
    return outputs | {
        "classes": context.folder / AVERAGES,
        "class_table": context.folder / TABLE,
    }


def renumber(keep: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Give the classes that are kept numbers from 0, the others -1, as in the stack written."""
    return np.where(keep, np.cumsum(keep) - 1, -1).astype(np.int32)


def _write(
    folder: Path, particles: xr.Dataset, admission: Admission, number: NDArray[np.int32]
) -> dict[str, Path]:
    """Write selected particles, in their new class numbers, and rejected ones."""
    renamed = moved_to_near(particles, admission.moved)
    member = np.append(number, np.int32(-1))[np.asarray(renamed["class_index"].values)]
    renamed = renamed.assign(class_index=("particle", member))
    chosen = np.flatnonzero(admission.inside)
    outputs = write_particle_tables(renamed, folder, rows=chosen)
    outputs["rejected"] = folder / "rejected.zarr"
    write_particles(particles, outputs["rejected"], rows=np.flatnonzero(~admission.inside))
    return outputs


def _tell(
    context: Context, particles: xr.Dataset, nowhere: NDArray[np.bool_], admission: Admission
) -> None:
    """Say what was rejected and why: counts that add up to the rejected particles."""
    lost = ~admission.inside & ~admission.trimmed & ~admission.dropped & ~nowhere
    trimmed, dropped = int(admission.trimmed.sum()), int(admission.dropped.sum())
    parts = [f"{int(lost.sum())} in rejected classes"]
    if lost.any() and "noise_probability" in particles:
        likely = float(np.sum(1.0 - particles["noise_probability"].values[lost], dtype=np.float64))
        parts[0] += f" (noise does not explain about {likely:.0f} of them)"
    if dropped:
        parts.append(f"{dropped} in classes whose structure noise explains")
    if trimmed:
        parts.append(f"{trimmed} in kept classes with evidence below {admission.least:.2g}")
    if nowhere.any():
        parts.append(f"{int(nowhere.sum())} in no class")
    total = int(lost.sum()) + dropped + trimmed + int(nowhere.sum())
    context.events.message(f"{counted(total, 'particle')} rejected: {', '.join(parts)}")
    moved = int((admission.moved & admission.inside).sum())
    if moved:
        context.events.message(
            f"{counted(moved, 'particle')} of classes whose structure noise explains in part now "
            f"{'are' if moved > 1 else 'is'} in the kept class that explains "
            f"{'them' if moved > 1 else 'it'} best"
        )


def _tell_classes(
    context: Context, classes: Classes, quality: ClassQuality, keep: NDArray[np.bool_]
) -> None:
    """Say of each rejected class what counted most against it."""
    filled = classes.count > 0
    beside = filled & (quality.figures["neighbour"] > NEIGHBOUR[0])
    if 2 * classes.count[beside].sum() > classes.count.sum():
        context.events.warning(
            f"{counted_of(int(beside.sum()), int(filled.sum()), 'class', verb=('has', 'have'))} "
            "density at the edge of the mask: neighbours, which a smaller --mask-diameter of "
            "class2d leaves out, or a particle that needs a larger one"
        )
    reasons = quality.reasons()
    gone = np.flatnonzero(~keep & (classes.count > 0))
    if gone.size:
        told = [f"{c + 1} ({_WORDS.get(reasons[c], reasons[c])})" for c in gone[:_LISTED].tolist()]
        more = f" and {gone.size - _LISTED} more" if gone.size > _LISTED else ""
        words = counted(int(gone.size), "class")
        context.events.message(
            f"{words} rejected: {', '.join(told)}{more}; {TABLE} has all figures"
        )


def write_scores(
    path: Path,
    classes: Classes,
    quality: ClassQuality,
    keep: NDArray[np.bool_],
    *,
    trimmed: NDArray[np.integer[Any]],
    moved: NDArray[np.integer[Any]],
) -> None:
    """Write the classes that are kept, in their new numbers, and the scores of all."""
    kept = np.flatnonzero(keep)
    number = np.arange(1, kept.size + 1)
    general: dict[str, NDArray[Any]] = {
        "rlnPixelSize": np.array([classes.pixel_size]),
        "rlnNrClasses": np.array([kept.size]),
        "dspaMaskDiameter": np.array([classes.mask_diameter]),
    }
    selected: dict[str, NDArray[Any]] = {
        "rlnReferenceImage": np.array([f"{n:06d}@{AVERAGES}" for n in number], object),
        "rlnClassNumber": number,
        "rlnEstimatedResolution": classes.resolution[kept],
        "dspaParticles": classes.count[kept],
        "dspaClassBefore": kept + 1,
    }
    if classes.log_likelihood is not None:
        selected["dspaMeanLogLikelihood"] = classes.log_likelihood[kept]
    if classes.noise is not None:
        selected["dspaNoiseShare"] = classes.noise[kept]
    if classes.structure is not None:
        selected["dspaStructureNoise"] = classes.structure[kept]
    judged: dict[str, NDArray[Any]] = {
        "dspaClassBefore": np.arange(1, keep.size + 1),
        "dspaSelected": keep.astype(np.int64),
        "dspaClassScore": quality.score,
        "dspaParticles": classes.count,
        "dspaTrimmed": trimmed,
        "dspaMoved": moved,
        "dspaAgainst": np.array(quality.reasons(), object),
        "rlnEstimatedResolution": classes.resolution,
    }
    for name, values in quality.figures.items():
        judged[f"dspaFigure{_label(name)}"] = values
    for name, values in quality.penalty.items():
        judged[f"dspaPenalty{_label(name)}"] = values
    blocks = (
        Block("model_general", general, loop=False),
        Block("model_classes", selected),
        Block("class_scores", judged),
    )
    write_star(path, blocks)


def _label(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _pictures(
    context: Context, classes: Classes, quality: ClassQuality, keep: NDArray[np.bool_]
) -> None:
    """Draw what is kept and what is not, each by falling score."""
    for name, chosen in (("selected", keep), ("rejected", ~keep & (classes.count > 0))):
        order = np.flatnonzero(chosen)
        order = order[np.lexsort((-classes.count[order], -quality.score[order]))]
        if order.size == 0:
            continue
        labels = [
            f"{c + 1}: {classes.count[c]}, {classes.resolution[c]:.0f} A, {quality.score[c]:.2f}"
            for c in order
        ]
        title = f"{name} classes: number, particles, resolution, score"
        context.events.picture(
            f"classes_{name}", montage(classes.averages[order], labels=labels), title=title
        )


STAGE = Stage(
    name="select2d",
    summary="keep the particles of good 2D classes",
    params=Params,
    inputs=(
        Input("particles", "particles", help="Particles with classes."),
        Input("averages", "classes", help="Their class averages; classes.star is read beside."),
    ),
    run=run,
    admit=admit,
    lead=leading(100),
)

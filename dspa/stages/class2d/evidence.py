"""Evidence of each image for a particle, beside images of noise that are scored in its place.

A pass of its own after the last one weighs every image against the averages as they came out. The
averages it was classified by will not do: noise that was aligned to them has left its mark on them,
so that boxes of noise attain more than other noise does. About a thousand images get a control:
noise with the spectrum, CTF, mask and fold of that image. What the controls attain is what noise
can attain with these averages.

A second weighing looks only at what is finer than a third of the mask, and only at classes that
resolve it: a blob fits any particle, and what is in a class of blobs cannot speak for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, take_rows, to_host
from dspa.ops.images.class_quality import (
    GOOD,
    HALF,
    judge_classes,
    structure_penalty,
    structure_per_particle,
    weighted_quantile,
)
from dspa.ops.images.noise import weigh_images
from dspa.ops.poses.evidence import (
    EDGE_RADIUS,
    FIELD_RADIUS,
    draw_noise,
    edge_evidence,
    field_evidence,
    noise_evidence,
    noise_probability,
    residual,
)
from dspa.ops.poses.search import Searchers
from dspa.stages.class2d.constants import tuned
from dspa.stages.class2d.model import ClassModel
from dspa.stages.em.contrast import contrast_deviation
from dspa.stages.em.march import Pass, once
from dspa.stages.em.noise import coefficient_noise
from dspa.stages.particles.images import prepare_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Chunk, Model, Rows, Sums
    from dspa.ops.poses.search import Searcher
    from dspa.stages.class2d.model import Classification
    from dspa.stages.class2d.plan import ClassPlan
    from dspa.stages.particles.chunks import ImageSpec, ParticleBatch
    from dspa.stages.stage import Context


# What is measured of every image: evidence of all, and of structure; the same of an image of noise
# in its place; which of the classes that resolve explains it best, and the pose there.
MEASURED = (
    "gain", "control", "structure", "structure_control",
    "near_class", "near_angle", "near_x", "near_y",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Weighing:
    """Reduction that weighs images against classes, and noise in place of some of them.

    Attributes
    ----------
    plan : ClassPlan
        Of a pass over the coarse lattice.
    showing : (classes,) bool
        Classes that show a particle: an edge of ice is no particle for matching a class of edges.
    resolving : (classes,) bool
        Classes that witness for the structure of a particle (`resolving`).
    every : int
        One of so many images gets a control.
    again : bool
        Only the structure is weighed, with other witnesses.
    """

    plan: ClassPlan
    showing: NDArray[np.bool_]
    resolving: NDArray[np.bool_]
    every: int
    again: bool = False

    def bind(self, model: Model, items: int = 0) -> BoundWeighing:
        """Prepare the averages of the classes that show a particle."""
        known = ClassModel.read(model)
        made = []
        for chosen in (self.showing, self.resolving):
            count = known.count[chosen]
            share = np.maximum(count / max(float(count.sum()), 1.0), tuned().faintest)
            averages = known.references(self.plan, chosen)
            made.append(Searchers(averages, self.plan.lattice(), np.log(share)))
        return BoundWeighing(self, known, *made)

    def bytes_per_item(self) -> int:
        """Memory per particle: its band several times over."""
        return 48 * self.plan.spec.band().count + 40_000

    def bytes_of_sums(self) -> int:
        """Memory of the averages."""
        return 64 * int(self.showing.sum() + self.resolving.sum()) * self.plan.spec.crop**2


@dataclass(frozen=True, eq=False)
class BoundWeighing:
    """Weighing with the averages.

    Attributes
    ----------
    task : Weighing
    model : ClassModel
    searchers, witnesses : Searchers
        The averages that show a particle, and those that resolve its structure.
    """

    task: Weighing
    model: ClassModel
    searchers: Searchers
    witnesses: Searchers

    @property
    def plan(self) -> ClassPlan:
        """Of the pass."""
        return self.task.plan

    def start(self) -> Sums:
        """Return the number of images weighed so far."""
        return {"weighed": np.zeros(1, np.int64)}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Weigh the images of a batch."""
        rows: dict[str, NDArray[Any]] = {
            name: np.full(len(batch), np.nan, np.float32) for name in MEASURED
        }
        valid = np.flatnonzero(batch.valid)
        count = batch.band.size(self.plan.radius)
        searchers = self.searchers.beside(batch.images)
        witnesses = self.witnesses.beside(batch.images)
        for number in np.unique(batch.state["fold"][valid]).tolist():
            place = valid[batch.state["fold"][valid] == number]
            drawn = place[batch.indices[place] % self.task.every == 0]
            both = searchers[number], witnesses[number]
            images = take_rows(batch.images[:, :count], place)
            self._weigh(both, batch, rows, place=place, images=images)
            if drawn.size:
                noise: dict[str, NDArray[Any]] = {name: rows[name].copy() for name in MEASURED}
                images = self._controls(batch, drawn, count)
                self._weigh(both, batch, noise, place=drawn, images=images)
                rows["control"][drawn] = noise["gain"][drawn]
                rows["structure_control"][drawn] = noise["structure"][drawn]
        sums["weighed"] += valid.size
        return rows

    def _controls(self, batch: ParticleBatch, place: NDArray[np.int64], count: int) -> Any:
        """Draw noise in place of images: (n, count) complex64."""
        whole, spec = int(batch.images.shape[1]), self.plan.spec
        noise = coefficient_noise(self.model.nuisance, batch, place)
        generators = (
            np.random.default_rng([self.plan.settings.seed, int(index), 0xC0A7])
            for index in batch.indices[place]
        )
        draws = np.stack([each.standard_normal((2, whole), np.float32) for each in generators])
        return draw_noise(draws, noise, spec.band(), mask=spec.crop_mask())[:, :count]

    def _weigh(
        self,
        searchers: tuple[Searcher, Searcher],
        batch: ParticleBatch,
        rows: dict[str, NDArray[Any]],
        *,
        place: NDArray[np.int64],
        images: Any,
    ) -> None:
        """Weigh images of one fold, at ``place`` of the batch, and write what is found there."""
        count, (searcher, witness) = int(images.shape[1]), searchers
        noise = coefficient_noise(self.model.nuisance, batch, place)[:, :count]
        transfer = take_rows(batch.ctf[:, :count], place)
        y, c2 = weigh_images(images, transfer, noise)
        if not self.task.again:
            rows["gain"][place] = self._gain(searcher, images, transfer, noise=noise, y=y, c2=c2)
        fine = self.plan.spec.band().shell[:count] > first_shell(self.plan) - 1
        seen = like(fine.astype(np.float32), reference=c2)
        found = noise_evidence(witness, y * seen, c2 * seen, deviation=self._deviation)
        best, lattice = found.best, witness.lattice
        moved = lattice.shift_pixels[best.shift] * self.plan.spec.crop_pixel_size
        rows["structure"][place] = found.log_likelihood
        rows["near_class"][place] = np.flatnonzero(self.task.resolving)[best.member]
        rows["near_angle"][place] = lattice.angle(best.pose)
        rows["near_x"][place], rows["near_y"][place] = moved.T

    @property
    def _deviation(self) -> float:
        """Of the contrast of images."""
        return contrast_deviation(self.model.nuisance) if self.plan.image_scale else 0.0

    def _gain(
        self, searcher: Searcher, images: Any, transfer: Any, *, noise: Any, y: Any, c2: Any
    ) -> NDArray[np.float64]:
        """Log-likelihood of the classes against noise, a smooth field and an edge."""
        found = noise_evidence(searcher, y, c2, deviation=self._deviation)
        scaled = transfer * like(found.scale[:, None], reference=transfer)
        rest = residual(searcher, found.best, images, scaled, radius=EDGE_RADIUS)
        seen, power = to_host(images[:, : rest.shape[1]]), to_host(noise[:, : rest.shape[1]])
        spec, edges = self.plan.spec, straight_edges(self.plan.spec)[:, : rest.shape[1]]
        low = spec.band().size(FIELD_RADIUS)
        field = field_evidence(rest[:, :low], power[:, :low], spec.band(), mask=spec.crop_mask())
        # A particle beside an edge leaves it to the rest; an edge alone is gone with the particle.
        edge = edge_evidence(seen, power, edges) - edge_evidence(rest, power, edges)
        return found.log_likelihood - field - edge

    def finish(self, sums: Sums) -> Model:
        """Return how many images were weighed: the classes stay as they are."""
        return {"weighed": sums["weighed"]}


@lru_cache(maxsize=4)
def straight_edges(spec: ImageSpec) -> NDArray[np.complex64]:
    """Edges of 24 directions at ten places across the mask, prepared as images are: (240, f)."""
    box = tuned().edge_box
    small = replace(
        spec,
        box=box,
        crop=box,
        pixel_size=spec.extent / box,
        radius=min(spec.radius, EDGE_RADIUS),
        edge=spec.edge * box / spec.box,
    )
    axis = np.arange(box) - box // 2
    x, y = np.meshgrid(axis, axis)
    turn = (2.0 * np.pi / 24.0) * np.arange(24)[:, None, None, None]
    places = np.linspace(-0.9, 0.9, 10) * (small.mask_diameter / small.pixel_size / 2.0)
    away = x * np.cos(turn) + y * np.sin(turn) - places[:, None, None]
    steps = 0.5 + 0.5 * np.tanh(away / (2.0 * tuned().edge_width * box))
    images = steps.reshape(-1, box, box).astype(np.float32)
    prepared = prepare_images(images, small, ctf=None)
    found: NDArray[np.complex64] = prepared["images"][prepared["valid"]]
    return found


def showing(known: Classification) -> NDArray[np.bool_]:
    """Say which averages show a particle, going by their looks; all, if none does."""
    rows, model, spec = known.rows, known.model, known.spec
    inside = rows["class_index"] >= 0
    member = rows["class_index"][inside]
    count = np.bincount(member, minlength=known.classes)
    gain = np.bincount(member, rows["log_likelihood"][inside], known.classes)
    quality = judge_classes(
        model.averages,
        count,
        radius=spec.mask_diameter / spec.crop_pixel_size / 2.0,
        resolution=np.where(count > 0, spec.extent / model.shell, spec.extent),
        log_likelihood=gain / np.maximum(count, 1),
    )
    good = quality.score >= GOOD
    return good if good.any() else np.ones(known.classes, bool)


def first_shell(plan: ClassPlan) -> int:
    """Shell from which on structure is looked for: finer than a third of the mask."""
    shell = int(np.ceil(tuned().structure_periods * plan.spec.extent / plan.spec.mask_diameter))
    return min(shell, plan.radius - 1)


def resolving(known: Classification, first: int, shows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say which classes witness for structure: those whose particles show as much as is usual.

    Parameters
    ----------
    known : Classification
    first : int
        Shell from which on structure counts.
    shows : (classes,) bool
        Classes that show a particle (`showing`).
    """
    model = known.model
    count = model.count
    usable = shows & (count > 0)
    if not usable.any():
        return shows
    usual = weighted_quantile(model.shell[usable], count[usable], 0.5)
    each = structure_per_particle(model.frc, count, first=first, last=max(round(usual), first + 1))
    middle = weighted_quantile(each[usable], count[usable], 0.5)
    return usable & (each >= tuned().witness * middle)


def weigh(
    context: Context, known: Classification, plan: ClassPlan, chunks: Sequence[Chunk]
) -> Classification:
    """Weigh particles against the averages and against noise: rows named in ``MEASURED``.

    Parameters
    ----------
    context : Context
    known : Classification
        Its first particles are those of the table that the chunks were cut from.
    plan : ClassPlan
        Of the last pass.
    chunks : sequence of Chunk
    """
    every = max(1, sum(len(chunk) for chunk in chunks) // tuned().controls)
    weighing, shows = plan.weighing(), showing(known)
    witnesses = resolving(known, first_shell(weighing), shows)
    task = Weighing(weighing, shows, witnesses, every)
    weighed = _weighed(context, known, task, chunks)
    fewer = witnesses & ~unsound(weighed.rows, known.classes)
    if fewer.any() and not np.array_equal(fewer, witnesses):
        task = replace(task, resolving=fewer, again=True)
        weighed = _weighed(context, weighed, task, chunks)
    return weighed


def _weighed(
    context: Context, known: Classification, task: Weighing, chunks: Sequence[Chunk]
) -> Classification:
    """Run a weighing, or take what it left, and put what it measured into the rows."""
    name = "reweigh" if task.again else "weigh"
    found = once(context, Pass(task, chunks, known.model.arrays()), name).rows
    rows = dict(known.rows)
    for measured in MEASURED:
        if task.again and measured in ("gain", "control"):
            continue
        column = np.array(rows.get(measured, np.full(known.uid.size, np.nan, np.float32)))
        column[found["item"]] = found[measured]
        rows[measured] = column
    return replace(known, rows=rows)


def unsound(rows: Rows, classes: int) -> NDArray[np.bool_]:
    """Say of which classes noise explains the structure of many particles: (classes,) bool.

    Parameters
    ----------
    rows : mapping of name to (n,) array
        As `weigh` leaves them.
    classes : int
    """
    noise = judge_noise(rows).structure
    inside = rows["class_index"] >= 0
    member = rows["class_index"][inside]
    count = np.bincount(member, minlength=classes)
    share = np.bincount(member, noise[inside], classes) / np.maximum(count, 1)
    if not count.any():
        return np.zeros(classes, bool)
    cost = structure_penalty(share, count.astype(np.float64), count > 0)
    return np.asarray(cost >= HALF)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What speaks for a particle in each image.

    Attributes
    ----------
    evidence : (n,) float32
        Log-likelihood of the classes against noise, a smooth field and an edge, less what half of
        the controls attain: 0 is noise. NaN for images set aside.
    probability, structure : (n,) float32
        Of being noise; and that noise explains what is finer than a third of the mask.
    controls : (m,) float32
        Evidence of the images of noise.
    """

    evidence: NDArray[np.float32]
    probability: NDArray[np.float32]
    structure: NDArray[np.float32]
    controls: NDArray[np.float32]


def judge_noise(rows: Mapping[str, NDArray[Any]]) -> Evidence:
    """Compare what images attain with what noise attains.

    Parameters
    ----------
    rows : mapping of name to (n,) array
        As `weigh` leaves them.
    """
    gain, probability, control = _against(rows["gain"], rows["control"])
    structure = _against(rows["structure"], rows["structure_control"])[1]
    return Evidence(
        gain.astype(np.float32),
        probability.astype(np.float32),
        structure.astype(np.float32),
        control.astype(np.float32),
    )


def _against(
    gain: NDArray[Any], control: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[Any]]:
    """Return evidence, the probability of noise, and the evidence of the controls."""
    control = control[np.isfinite(control)]
    middle = np.median(control) if control.size else 0.0
    return gain - middle, noise_probability(gain - middle, control - middle), control - middle

"""Ab initio as a reduction: expectation in ``add``, the next volumes in ``finish``.

Stochastic EM: the sums of a mini-batch are blended into those so far with a decaying step (online
EM, Cappe & Moulines 2009, doi:10.1111/j.1467-9868.2009.00698.x), starting from images at random
poses, as stochastic gradient descent does (Punjani et al. 2017, doi:10.1038/nmeth.4169). Dividing
the sums by their weights preconditions the step: all shells converge alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.ops.abinitio import (
    CoarseSlices,
    ball,
    centre_of_mass,
    expectation,
    move_sums,
    polish,
    widen_sums,
)
from dspa.ops.images.noise import spread_shells
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.sphere import TURNS, PoseGrid, random_grid
from dspa.ops.sums.backproject import Accumulator, accumulator, insert_into
from dspa.ops.sums.project import prepare_volume, project
from dspa.ops.sums.reconstruct import reconstruct
from dspa.stages.abinitio.schedule import COARSE_ORDER
from dspa.stages.abinitio.search import FineModel, fine_model, fine_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.stages.abinitio.schedule import StepPlan
    from dspa.stages.abinitio.search import FineResult
    from dspa.stages.particles.chunks import ParticleBatch

PADDING = 2
EPSILON = 1e-3  # guard on the weights; no Wiener shrinkage
CENTRE_EVERY = 5


@dataclass(frozen=True, eq=False)
class CoarseModel:
    """Volumes ready for the coarse act.

    Attributes
    ----------
    grid : PoseGrid
    pixel, turn : (p,) int64
        Cells of the first half turn.
    slices : CoarseSlices
    phases : (t, f) complex64
    log_prior : (t,) float32
    """

    grid: PoseGrid
    pixel: NDArray[np.int64]
    turn: NDArray[np.int64]
    slices: CoarseSlices
    phases: NDArray[np.complex64]
    log_prior: NDArray[np.float32]


def coarse_model(plan: StepPlan, density: NDArray[np.float32]) -> CoarseModel:
    """Slice the volumes (k, n, n, n) at the poses of this step's grid."""
    spec, grid = plan.settings.spec, random_grid(plan.seeds)
    members = band(spec.crop, plan.whole_radius)
    half = (TURNS << COARSE_ORDER) // 2
    pixel, turn = np.divmod(np.arange((12 << (2 * COARSE_ORDER)) * half), half)
    rotations = grid.rotations(COARSE_ORDER, pixel, turn)
    size = members.size(plan.radius)
    slices = np.stack(
        [
            project(prepare_volume(volume, plan.whole_radius), rotations, members, count=size)
            for volume in density
        ]
    )
    lattice = plan.shift_lattice()
    phases = np.conj(shift_phases(members, lattice, count=size)).astype(np.complex64)
    sigma = max(1.0, plan.settings.reach_pixels)
    prior = -(lattice**2).sum(axis=1) / (2.0 * sigma**2)
    return CoarseModel(
        grid, pixel, turn, CoarseSlices.make(slices), phases, prior.astype(np.float32)
    )


class Outcome(NamedTuple):
    """What a step says of its images."""

    log_likelihood: NDArray[np.float64]
    class_posterior: NDArray[np.float64]
    sample_size: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AbInitioStep:
    """Reduction of one step (see ``dspa.dataflow.reduction``)."""

    plan: StepPlan

    def bind(self, model: Model) -> BoundStep:
        """Slice the volumes for this step."""
        if self.plan.act == "start":
            return RandomStep(self.plan, model)
        if self.plan.act == "coarse":
            return CoarseStep(self.plan, model, coarse_model(self.plan, model["density"]))
        last = min(self.plan.settings.coarse_steps, len(model["history"]) - 1)
        spread = float(model["history"][last, 2])
        fine = fine_model(self.plan, model["density"], sample_size=spread)
        return FineStep(self.plan, model, fine)

    def bytes_per_item(self) -> int:
        """Memory per image: its band several times over, and scores or candidates."""
        spec = self.plan.settings.spec
        return 64 * spec.band().count + (40_000 if self.plan.act == "coarse" else 1_500_000)


@dataclass(frozen=True, eq=False)
class BoundStep:
    """A step with its model; how images are compared with it is up to the act.

    Attributes
    ----------
    plan : StepPlan
    model : Model
        Of the step before.
    """

    plan: StepPlan
    model: Model

    def start(self) -> Sums:
        """Return empty sums."""
        settings = self.plan.settings
        spec, classes = settings.spec, settings.classes
        empty = accumulator(spec.crop, self.plan.sums_radius, padding=PADDING).sums
        return {
            "sums": np.zeros((classes, *empty.shape), np.float32),
            "occupancy": np.zeros(classes),
            # images, log-likelihood, log of the effective sample size
            "figures": np.zeros(3),
        }

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Compare a batch with the volumes and add it to the sums."""
        chosen = np.flatnonzero(batch.valid)
        rows = empty_rows(batch) if self.plan.act == "final" else {}
        if chosen.size == 0:
            return rows
        noise = spread_shells(np.asarray(self.model["noise"], np.float32), batch.band)
        y = np.conj(batch.images[chosen]) * (batch.ctf[chosen] / noise)
        c2 = batch.ctf[chosen] ** 2 / noise
        found = self._compare(sums, batch.indices[chosen], y, c2)
        _count(sums, found.log_likelihood, found.class_posterior, found.sample_size)
        if self.plan.act == "final":
            _fill_rows(rows, chosen, found, pixel_size=self.plan.settings.spec.crop_pixel_size)
        return rows

    def _compare(self, sums: Sums, indices: NDArray[np.int64], y: Any, c2: Any) -> Any:
        """Add images to the sums of the classes; return what was found of each."""
        raise NotImplementedError

    def _target(self, sums: Sums, k: int) -> Accumulator:
        """View the sums of a class as an accumulator: insertion changes the partial."""
        box = self.plan.settings.spec.crop
        return Accumulator(sums["sums"][k], box, self.plan.sums_radius, PADDING)

    def finish(self, sums: Sums) -> Model:
        """Blend the sums into those so far and make the next volumes."""
        model, plan = self.model, self.plan
        images = max(1.0, float(sums["figures"][0]))
        fresh = sums["sums"] / np.float32(images)
        share = sums["occupancy"] / images
        if plan.act in ("start", "final"):
            blend, occupancy = fresh, share
        else:
            step = np.float32(plan.step)
            blend = (1 - step) * widen_sums(model["sums"], fresh.shape) + step * fresh
            occupancy = (1.0 - plan.step) * model["occupancy"] + plan.step * share
        density = volumes(plan, blend)
        if plan.act != "start" and plan.iteration % CENTRE_EVERY == 0:
            density, blend = recentre(plan, density, blend)
        return {
            "density": density,
            "sums": np.asarray(blend, np.float32),
            "occupancy": occupancy,
            "noise": model["noise"],
            "start": np.asarray(plan.settings.start),
            "history": _history(model, plan, sums["figures"]),
            "iteration": np.asarray(plan.iteration),
        }


@dataclass(frozen=True, eq=False)
class RandomStep(BoundStep):
    """The start: no volumes yet."""

    def _compare(self, sums: Sums, indices: NDArray[np.int64], y: Any, c2: Any) -> Outcome:
        """Put every image into every class at a random pose of its own."""
        settings, classes = self.plan.settings, self.plan.settings.classes
        members = settings.spec.band()
        size = members.size(self.plan.radius)
        for k in range(classes):
            seeds = ([settings.seed, settings.start, k, int(index)] for index in indices)
            poses = np.concatenate([random_rotations(1, seed=seed) for seed in seeds])
            insert_into(
                self._target(sums, k),
                poses,
                np.conj(y[:, :size]),
                weights=c2[:, :size],
                band=members,
            )
        count = indices.size
        return Outcome(np.zeros(count), np.full((count, classes), 1.0 / classes), np.ones(count))


@dataclass(frozen=True, eq=False)
class CoarseStep(BoundStep):
    """The coarse act: every image at all poses of a grid."""

    coarse: CoarseModel

    def _compare(self, sums: Sums, indices: NDArray[np.int64], y: Any, c2: Any) -> Any:
        """Marginalise over the coarse grid."""
        coarse, plan = self.coarse, self.plan
        size = coarse.phases.shape[1]
        found = expectation(
            coarse.slices,
            np.ascontiguousarray(y[:, :size]),
            np.ascontiguousarray(c2[:, :size]),
            phases=coarse.phases,
            log_prior=coarse.log_prior,
            temperature=plan.temperature,
        )
        poses = coarse.grid.rotations(COARSE_ORDER, coarse.pixel, coarse.turn)
        members = band(plan.settings.spec.crop, plan.settings.spec.radius)
        for k in range(plan.settings.classes):
            insert_into(
                self._target(sums, k),
                poses,
                found.numerators[k],
                weights=found.weights[k],
                band=members,
            )
        return found


@dataclass(frozen=True, eq=False)
class FineStep(BoundStep):
    """The fine act and the last pass: branch and bound."""

    fine: FineModel

    def _compare(self, sums: Sums, indices: NDArray[np.int64], y: Any, c2: Any) -> FineResult:
        """Search the poses of images in every class."""
        return fine_sums(self.fine, sums["sums"], y, c2)


def _history(model: Model, plan: StepPlan, figures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Append this step: resolution (A), log-likelihood, effective sample size, images; (s, 4)."""
    images = max(1.0, float(figures[0]))
    spread = float(np.exp(figures[2] / images))
    now = [plan.settings.spec.extent / plan.radius, figures[1] / images, spread, figures[0]]
    before = np.asarray(model.get("history", np.zeros((0, 4))))
    return np.concatenate([before, np.asarray([now], np.float64)])


def volumes(plan: StepPlan, sums: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reconstruct all classes, each drawn towards their mean by the similarity of this step."""
    settings = plan.settings
    spec = settings.spec
    mean = sums.mean(axis=0) if settings.classes > 1 and plan.similarity > 0.0 else None
    mask = ball(spec.crop, spec.mask_diameter / spec.crop_pixel_size / 2.0)
    made = []
    for own in sums:
        blend = own if mean is None else own + np.float32(plan.similarity) * (mean - own)
        source = Accumulator(np.asarray(blend, np.float32), spec.crop, plan.sums_radius, PADDING)
        raw = reconstruct(source, epsilon=EPSILON, radius=plan.sums_radius)
        made.append(polish(raw, radius=plan.radius, negative=settings.negative, mask=mask))
    return np.stack(made)


def recentre(
    plan: StepPlan, density: NDArray[np.float32], sums: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bring the mass of every class to the centre by whole voxels."""
    box = plan.settings.spec.crop
    density, sums = density.copy(), np.asarray(sums, np.float32).copy()
    for k in range(len(density)):
        shift = -np.round(centre_of_mass(density[k]))
        if np.any(shift != 0):
            sums[k] = move_sums(sums[k], shift, box=box, padding=PADDING)
            steps = tuple(int(s) for s in shift[::-1])
            density[k] = np.roll(density[k], steps, axis=(0, 1, 2))
    return density, sums


def empty_rows(batch: ParticleBatch) -> dict[str, NDArray[Any]]:
    """Rows of the final pass, for images that were set aside."""
    count = len(batch)
    return {
        "class_index": np.full(count, -1, np.int32),
        "pose": np.full((count, 3, 3), np.nan),
        "shift": np.full((count, 2), np.nan),
        "posterior": np.full(count, np.nan, np.float32),
        "log_likelihood": np.full(count, np.nan, np.float32),
    }


def _fill_rows(
    rows: dict[str, NDArray[Any]], chosen: NDArray[np.int64], found: Any, *, pixel_size: float
) -> None:
    best = found.class_posterior.argmax(axis=1)
    each = np.arange(chosen.size)
    rows["class_index"][chosen] = best
    rows["posterior"][chosen] = found.class_posterior[each, best]
    rows["pose"][chosen] = found.pose[each, best]
    rows["shift"][chosen] = found.shift[each, best] * pixel_size
    rows["log_likelihood"][chosen] = found.log_likelihood


def _count(
    sums: Sums,
    evidence: NDArray[np.float64],
    membership: NDArray[np.float64],
    sample_size: NDArray[np.float64],
) -> None:
    """Add the figures of a batch."""
    sums["occupancy"] += membership.sum(axis=0)
    sums["figures"] += [
        len(evidence), float(evidence.sum()), float(np.log(np.maximum(sample_size, 1.0)).sum()),
    ]  # fmt: skip

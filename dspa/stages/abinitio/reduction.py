"""Ab initio as a reduction: expectation in ``add``, the next volumes in ``finish``.

Stochastic EM: the sums of a mini-batch are blended into those so far with a decaying step (online
EM, Cappe & Moulines 2009, doi:10.1111/j.1467-9868.2009.00698.x), starting from images at random
poses, as stochastic gradient descent does (Punjani et al. 2017, doi:10.1038/nmeth.4169). Dividing
the sums by their weights preconditions the step: all shells converge alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from dspa.device import like, take_rows
from dspa.geometry.rotation import item_rotations
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.images.noise import weigh_images
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.polish import centre_of_mass, polish
from dspa.ops.poses.bound import by_bound
from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.marginal import marginal_sums
from dspa.ops.poses.peak import find_peaks
from dspa.ops.poses.pose_grid import random_grid
from dspa.ops.poses.posterior import map_posterior
from dspa.ops.poses.score import split
from dspa.ops.poses.search import Searchers, search
from dspa.ops.poses.sphere import SphereLattice
from dspa.ops.sums import grid
from dspa.ops.sums.backproject import Accumulator, symmetrise
from dspa.ops.sums.fixed import (
    add_exact,
    as_float,
    exact,
    exact_value,
    largest_entries,
)
from dspa.ops.sums.insert import insert_candidates, insert_marginal, insert_posterior, unmoved
from dspa.ops.sums.project import frames_of
from dspa.ops.sums.reconstruct import reconstruct
from dspa.stages.abinitio.model import FirstMaps
from dspa.stages.abinitio.schedule import Act
from dspa.stages.em.blend import blend
from dspa.stages.em.memory import COEFFICIENT, INSERTED, image_bytes, points, search_bytes
from dspa.stages.em.noise import coefficient_noise
from dspa.stages.em.scale import check_room, scale_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.ops.poses.sphere import Level
    from dspa.stages.abinitio.schedule import StepPlan
    from dspa.stages.particles.chunks import ParticleBatch

PADDING = 2
EPSILON = 1e-3  # guard on the weights; no Wiener shrinkage
CENTRE_EVERY = 5
MASK_EDGE = 3.0  # voxels
POLISHED = 12  # volumes while one is made: planes, density, gridding, spheres, masks, transforms


class Outcome(NamedTuple):
    """What a step says of its images.

    Attributes
    ----------
    log_likelihood : (n,) float64
    class_posterior : (n, k) float64
    sample_size : (n,) float64
        Effective number of (pose, shift) pairs.
    pose : (n, 3, 3) float64, optional
        Of the likeliest class.
    shift : (n, 2) float64, optional
        Pixels of the cropped image.
    """

    log_likelihood: NDArray[np.float64]
    class_posterior: NDArray[np.float64]
    sample_size: NDArray[np.float64]
    pose: NDArray[np.float64] | None = None
    shift: NDArray[np.float64] | None = None


def widened(levels: tuple[Level, ...], sample_size: float) -> tuple[Level, ...]:
    """Let more poses go on from level to level where posteriors are flat.

    Cutting a flat posterior to its best few poses makes images look sure of their pose and fits
    their noise; where the coarse act ended with sharp posteriors, few poses are enough.

    Parameters
    ----------
    levels : tuple of Level
    sample_size : float
        Effective number of poses per image at the end of the coarse act.
    """
    factor = float(np.clip(np.sqrt(sample_size / 10.0), 1.0, 4.0))
    return tuple(replace(level, poses=round(factor * level.poses)) for level in levels)


@dataclass(frozen=True, eq=False)
class AbInitioStep:
    """Reduction of one step (see ``dspa.dataflow.reduction``).

    Attributes
    ----------
    plan : StepPlan
    total : float
        What the largest entries of all images add up to, if a pass has measured it.
    """

    plan: StepPlan
    total: float = 0.0

    def bind(self, model: Model, items: int = 1 << 20) -> BoundStep:
        """Slice the volumes for this step."""
        plan, known = self.plan, FirstMaps.read(model)
        scale = scale_of(self.total, items, known.noise)
        if plan.act is Act.START:
            return BoundStep(plan, known, scale, RandomPoses(plan, scale))
        levels = plan.levels
        if plan.act is not Act.COARSE:
            last = min(plan.settings.coarse_steps, len(known.history) - 1)
            levels = widened(levels, float(known.history[last, 2]))
        lattice = SphereLattice(
            plan.settings.spec.band(),
            random_grid(plan.seeds),
            levels,
            plan.shifts(),
            symmetry_operators(plan.settings.symmetry),
            padding=PADDING,
        )
        # All classes are members of one set: every image sees every map.
        searchers = Searchers(known.density[None], lattice)
        kind = WholeGrid if plan.act is Act.COARSE else BranchAndBound
        return BoundStep(plan, known, scale, kind(plan, scale, lattice, searchers))

    def bytes_per_item(self) -> int:
        """Memory per image: its band several times over, and its candidates."""
        plan, band = self.plan, self.plan.settings.spec.band()
        members, reach = plan.settings.classes, plan.sums_radius
        if not plan.act.searches:  # of the coarse lattice a block is in memory at a time
            return COEFFICIENT * band.count + INSERTED * members * band.size(reach)
        return image_bytes(band, plan.levels, plan.shifts(), insert_radius=reach, members=members)

    def bytes_of_sums(self) -> int:
        """Memory of the sums and the model, and of what searches look at or the next volumes need.

        A number of a grid is 8 bytes in the sums and 4 in the model; at the end 4 in each of what
        is blended, known, widened and weighed. Volumes are those of the model, the next ones, and
        what one of them is made of.
        """
        plan, settings = self.plan, self.plan.settings
        sums = settings.classes * points(plan.sums_radius)
        volume = 4 * settings.spec.crop**3
        searching = 12 * sums + settings.classes * volume
        if plan.levels:
            searching += search_bytes(
                settings.spec.band(),
                plan.levels,
                plan.shifts(),
                insert_radius=plan.sums_radius,
                members=settings.classes,
                operators=len(symmetry_operators(plan.settings.symmetry)),
            )
        return max(searching, 16 * sums + (2 * settings.classes + POLISHED) * volume)


class Comparison(Protocol):
    """How the images of a batch are compared with the volumes: what an act is about."""

    def __call__(self, sums: Any, indices: NDArray[np.int64], y: Any, c2: Any) -> Outcome:
        """Add images to the grids of the classes; return what was found of each."""
        ...


@dataclass(frozen=True, eq=False)
class BoundStep:
    """A step with its model.

    Attributes
    ----------
    plan : StepPlan
    model : FirstMaps
        Of the step before.
    scale : float
        Of the sums in fixed point.
    compare : Comparison
        Of the act.
    """

    plan: StepPlan
    model: FirstMaps
    scale: float
    compare: Comparison

    @property
    def half(self) -> int:
        """Index h of the origin of the grids of the sums."""
        return PADDING * self.plan.sums_radius + 1

    def start(self) -> Sums:
        """Return empty sums; the grids are made where the first images lie."""
        return {
            "occupancy": exact((self.plan.settings.classes,)),
            # images, log-likelihood, log of the effective sample size
            "figures": exact((3,)),
            "largest": exact(),
        }

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Compare a batch with the volumes and add it to the sums."""
        chosen = np.flatnonzero(batch.valid)
        rows = empty_rows(batch) if self.plan.act is Act.FINAL else {}
        if chosen.size == 0:
            return rows
        images, ctf = take_rows(batch.images, chosen), take_rows(batch.ctf, chosen)
        y, c2 = weigh_images(images, ctf, coefficient_noise(self.model.nuisance, batch, chosen))
        if "sums" not in sums:
            lead = (self.plan.settings.classes,)
            sums["sums"] = grid.zeros(lead, self.half, dims=3, reference=y, fixed=True)
        add_exact(sums["largest"], largest_entries(y, c2).sum())
        found = self.compare(sums["sums"], batch.indices[chosen], y, c2)
        add_exact(sums["occupancy"], found.class_posterior.sum(axis=0))
        size = np.log(np.maximum(found.sample_size, 1.0)).sum()
        add_exact(sums["figures"], (chosen.size, found.log_likelihood.sum(dtype=float), size))
        if self.plan.act is Act.FINAL:
            _fill_rows(rows, chosen, found, pixel_size=self.plan.settings.spec.crop_pixel_size)
        return rows

    def finish(self, sums: Sums) -> Model:
        """Blend the sums into those so far and make the next volumes."""
        model, plan = self.model, self.plan
        check_room(AbInitioStep(plan), sums, self.scale)
        figures = exact_value(sums["figures"])
        images = max(1.0, float(figures[0]))
        fresh = grid.zeros((plan.settings.classes,), self.half, dims=3)
        if "sums" in sums:
            fresh = as_float(sums.pop("sums"), self.scale)
            fresh /= np.float32(images)
            group = symmetry_operators(plan.settings.symmetry)
            if len(group) > 1:
                fresh = np.stack([symmetrise(own, group) for own in fresh])
                fresh /= np.float32(len(group))
        share = exact_value(sums["occupancy"]) / images
        if plan.act not in (Act.START, Act.FINAL):
            known = grid.widen(model.sums, self.half, dims=3)
            # In place, as these are large.
            fresh = blend(known, fresh, step=np.float32(plan.step), out=fresh)
            share = blend(model.occupancy, share, step=plan.step)
        density = volumes(plan, fresh)
        if plan.act is not Act.START and plan.iteration % CENTRE_EVERY == 0:
            density, fresh = recentre(plan, density, fresh)
        return FirstMaps(
            iteration=plan.iteration,
            start=plan.settings.start,
            starts=plan.settings.starts,
            noise=model.noise,
            strongest=model.strongest,
            density=density,
            sums=np.asarray(fresh, np.float32),
            occupancy=share,
            history=np.concatenate([model.history, [_history(plan, figures)]]),
        ).arrays()


@dataclass(frozen=True, eq=False)
class RandomPoses:
    """The start: no volumes yet.

    Attributes
    ----------
    plan : StepPlan
    scale : float
    """

    plan: StepPlan
    scale: float

    def __call__(self, sums: Any, indices: NDArray[np.int64], y: Any, c2: Any) -> Outcome:
        """Put every image into every class at a random pose of its own."""
        settings, count = self.plan.settings, indices.size
        classes, members = settings.classes, settings.spec.band()
        size = members.size(self.plan.radius)
        seed = (settings.seed, settings.start)
        poses = np.concatenate([item_rotations(indices, (*seed, k)) for k in range(classes)])
        frames = like(frames_of(poses, padding=PADDING), reference=y)
        member = np.repeat(np.arange(classes, dtype=np.int32), count)
        image = np.tile(np.arange(count, dtype=np.int32), classes)
        still = np.zeros(member.size, np.int32)
        insert_candidates(
            sums,
            member,
            Candidates(image, member, np.arange(member.size), still),
            weight=np.ones(member.size, np.float32),
            frames=lambda pose: frames[pose],
            phases=unmoved(size, reference=y),
            row=still,
            y=split(y),
            c2=c2,
            band=members,
            scale=self.scale,
        )
        return Outcome(np.zeros(count), np.full((count, classes), 1.0 / classes), np.ones(count))


@dataclass(frozen=True, eq=False)
class WholeGrid:
    """The coarse act: every image at all poses of a grid.

    Attributes
    ----------
    plan : StepPlan
    scale : float
    lattice : SphereLattice
    searchers : Searchers
        One set; the classes are its members.
    """

    plan: StepPlan
    scale: float
    lattice: SphereLattice
    searchers: Searchers

    def __call__(self, sums: Any, indices: NDArray[np.int64], y: Any, c2: Any) -> Outcome:
        """Marginalise over the coarse grid."""
        searcher = self.searchers.beside(y)[0]
        found = marginal_sums(searcher, y, c2, temperature=self.plan.temperature)
        insert_marginal(sums, found, self.lattice, scale=self.scale)
        # The likelihood is a mean over poses and classes.
        cells = 2 * searcher.bank.poses
        gain = found.log_likelihood.astype(np.float64) - np.log(cells)
        size = 1.0 / found.square.astype(np.float64)
        return Outcome(gain, found.classes.astype(np.float64), size)


@dataclass(frozen=True, eq=False)
class BranchAndBound:
    """The fine act and the last pass: branch and bound.

    Attributes
    ----------
    plan : StepPlan
    scale : float
    lattice : SphereLattice
    searchers : Searchers
        One set; the classes are its members.
    """

    plan: StepPlan
    scale: float
    lattice: SphereLattice
    searchers: Searchers

    def __call__(self, sums: Any, indices: NDArray[np.int64], y: Any, c2: Any) -> Outcome:
        """Search the poses of images in all classes."""
        classes = self.plan.settings.classes
        pruning = by_bound(classes * level.poses for level in self.lattice.levels)
        seen = search(self.searchers.beside(y)[0], y, c2, pruning=pruning)
        found = map_posterior(seen.cells, seen.scores, indices.size, prior=seen.prior)
        insert_posterior(
            found,
            lambda share: (sums, share.cells.member, share.cells, share.weight),
            lattice=self.lattice,
            count=self.lattice.band.size(self.plan.sums_radius),
            y=y,
            c2=c2,
            scale=self.scale,
        )
        peak = find_peaks(found, self.lattice)
        square = np.bincount(found.cells.image, found.weight.astype(np.float64) ** 2)
        members = found.members(classes)
        return Outcome(
            found.log_likelihood.astype(np.float64), members, 1.0 / square, peak.pose, peak.shift
        )


def _history(plan: StepPlan, figures: NDArray[np.float64]) -> list[float]:
    """Row of a step: resolution (A), log-likelihood, effective sample size, images."""
    images = max(1.0, float(figures[0]))
    spread = float(np.exp(figures[2] / images))
    return [plan.settings.spec.extent / plan.radius, figures[1] / images, spread, figures[0]]


def volumes(plan: StepPlan, sums: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reconstruct all classes, each drawn towards their mean by the similarity of this step."""
    settings = plan.settings
    spec = settings.spec
    mean = sums.mean(axis=0) if settings.classes > 1 and plan.similarity > 0.0 else None
    radius = spec.mask_diameter / spec.crop_pixel_size / 2.0 - MASK_EDGE
    mask = soft_sphere(spec.crop, radius, pixel_size=1.0, edge=MASK_EDGE)
    made = []
    for own in sums:
        drawn = own if mean is None else own + np.float32(plan.similarity) * (mean - own)
        source = Accumulator(np.asarray(drawn, np.float32), spec.crop, plan.sums_radius, PADDING)
        raw = reconstruct(source, epsilon=EPSILON, radius=plan.sums_radius)
        made.append(polish(raw, radius=plan.radius, negative=settings.negative, mask=mask))
    return np.stack(made)


def recentre(
    plan: StepPlan, density: NDArray[np.float32], sums: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bring the mass of every class to the centre by whole voxels, along axes that may move."""
    box = plan.settings.spec.crop
    free = symmetry_operators(plan.settings.symmetry).mean(axis=0)
    density, sums = density.copy(), np.asarray(sums, np.float32).copy()
    for k in range(len(density)):
        shift = -np.round(free @ centre_of_mass(density[k]))
        if np.any(shift != 0):
            sums[k] = grid.move(sums[k], shift, dims=3, step=1.0 / (PADDING * box))
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
    rows["pose"][chosen] = found.pose
    rows["shift"][chosen] = found.shift * pixel_size
    rows["log_likelihood"][chosen] = found.log_likelihood

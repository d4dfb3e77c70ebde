"""Refinement as a reduction: search and backprojection in ``add``, the maps in ``finish``.

One pass handles both half sets. Their sums are separate from the first slice on, each image sees
only the reference of its own half, and the noise is estimated for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.geometry.band import band
from dspa.geometry.rotation import angle_between
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.images.noise import spread_shells
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.pose_posterior import Estimate, Posterior, estimate, posterior, weighted_phases
from dspa.ops.poses.pose_search import (
    Candidates,
    Searcher,
    SearchImages,
    coarse_slices,
    neighbours,
    search,
)
from dspa.ops.poses.search_bound import SearchBound, measure_bound, shell_sums
from dspa.ops.poses.sphere import TURNS, random_grid
from dspa.ops.sums.backproject import accumulator, insert_into
from dspa.ops.sums.project import Reference, prepare_volume, project
from dspa.stages.refine.maps import FIGURES, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.stages.particles.chunks import ParticleBatch
    from dspa.stages.refine.plan import Plan

HALVES = (1, 2)
SCALE_PRIOR = 1.0 / 0.3**2  # inverse variance of the scale of an image about 1


@dataclass(frozen=True, eq=False)
class Half:
    """The model of one half set, ready.

    Attributes
    ----------
    searcher : Searcher
    bound : SearchBound
    reference : Reference
        Out to the radius compared.
    noise : (f,) float32
        Noise power of every coefficient.
    """

    searcher: Searcher
    bound: SearchBound
    reference: Reference
    noise: NDArray[np.float32]


def _make_half(plan: Plan, density: NDArray[np.float32], noise: NDArray[np.float64]) -> Half:
    """Slice and crop the reference of a half set for the searches of an iteration."""
    members, grid = plan.spec.band(), random_grid(plan.seeds)
    radii = [level.radius for level in plan.levels]
    references = {radius: prepare_volume(density, radius) for radius in sorted(set(radii))}
    first, pixels = plan.levels[0], np.zeros(0, np.int64)
    slices = np.zeros((0, 0), np.complex64)
    if not plan.local:
        pixels = grid.directions(first.order, symmetry_operators(plan.settings.symmetry))
        inner = band(plan.spec.crop, first.radius)
        slices = coarse_slices(
            references[first.radius], grid, first.order, pixels=pixels, band=inner
        )
    searcher = Searcher(
        members, grid, plan.levels, plan.shifts, tuple(references[r] for r in radii), pixels,
        slices, plan.profile,
    )  # fmt: skip
    bound = measure_bound(references[radii[-1]], plan.levels, band=members, seed=plan.iteration)
    power = spread_shells(noise.astype(np.float32), members)
    return Half(searcher, bound, references[radii[-1]], power)


@dataclass(frozen=True, eq=False)
class Refinement:
    """Reduction of one iteration (see ``dspa.dataflow.reduction``)."""

    plan: Plan

    def bind(self, model: Model) -> BoundRefinement:
        """Make the references of both halves ready."""
        halves = tuple(
            _make_half(self.plan, model["reference"][h], model["noise"][h]) for h in (0, 1)
        )
        return BoundRefinement(self.plan, model, halves)

    def bytes_per_item(self) -> int:
        """Memory per image: its bands, and the largest level of its candidates."""
        members = self.plan.spec.band()
        levels = self.plan.levels
        scored = 0
        for above, level in pairwise(levels):
            scored = max(scored, 8 * above.poses * (8 * members.size(level.radius) + 600))
        inserted = 2 * levels[-1].poses * 8 * members.size(self.plan.insert_radius) * 3
        return 40 * members.count + scored + inserted


@dataclass(frozen=True, eq=False)
class BoundRefinement:
    """An iteration with its references.

    Attributes
    ----------
    plan : Plan
    model : Model
        Of the iteration before.
    halves : tuple of Half
        Of half sets 1 and 2.
    """

    plan: Plan
    model: Model
    halves: tuple[Half, ...]

    def start(self) -> Sums:
        """Return empty sums of both halves."""
        plan = self.plan
        sums: Sums = {}
        for half in HALVES:
            sums[f"map{half}"] = accumulator(plan.spec.crop, plan.insert_radius)
            sums[f"noise{half}"] = np.zeros(plan.spec.radius + 1)
            sums[f"figures{half}"] = np.zeros(len(FIGURES))
        return sums

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Search the poses of a batch, add its images to the maps of their halves."""
        rows = {
            "pose": np.array(batch.state["pose"], np.float64),
            "shift": np.array(batch.state["shift"], np.float64),
            "scale": np.array(batch.state["scale"], np.float64),
            "log_likelihood": np.full(len(batch), np.nan),
            "probability": np.full(len(batch), np.nan),
            "spread": np.full(len(batch), np.nan),
        }
        for half in HALVES:
            chosen = np.flatnonzero(batch.valid & (batch.state["half_set"] == half))
            if chosen.size:
                _add_half(self, sums, rows, batch, half=half, chosen=chosen)
        return rows

    def finish(self, sums: Sums) -> Model:
        """Reconstruct the halves, measure their resolution, make the next references."""
        return solve(self.plan, sums, self.model)


def _add_half(
    task: BoundRefinement,
    sums: Sums,
    rows: dict[str, NDArray[Any]],
    batch: ParticleBatch,
    *,
    half: int,
    chosen: NDArray[np.int64],
) -> None:
    """Add the images of one half set; ``rows`` and ``sums`` are changed."""
    plan, model = task.plan, task.halves[half - 1]
    members, pixel_size = plan.spec.band(), plan.spec.crop_pixel_size
    images = batch.images[chosen]
    scale = rows["scale"][chosen]
    transfer = batch.ctf[chosen] * scale[:, None].astype(np.float32)
    prior = batch.state["prior_shift"][chosen]
    centred = images * shift_phases(members, prior / pixel_size)
    y = np.conj(centred) * (transfer / model.noise)
    seen = SearchImages(y, transfer * transfer / model.noise)
    found, spread = _find(task, seen, model, rows=rows, prior=prior, chosen=chosen)
    peak = estimate(spread, 2.5 * np.pi * 2.0 / (TURNS << plan.levels[-1].order))
    shift = prior + peak.shift * pixel_size
    cross, norm = _insert(task, sums, (centred, seen), spread, half=half)
    _count(sums[f"figures{half}"], task, found, spread, peak)
    sums[f"figures{half}"][5:7] += _changes(task, rows, chosen, peak.pose, shift)
    rows["pose"][chosen], rows["shift"][chosen] = peak.pose, shift
    rows["log_likelihood"][chosen] = spread.evidence
    rows["probability"][chosen], rows["spread"][chosen] = peak.probability, peak.spread
    if plan.settings.scale and not plan.profile:
        # cross and norm were taken with the present scale: undo it for the new one.
        fitted = (2.0 * cross / scale + SCALE_PRIOR) / (2.0 * norm / scale**2 + SCALE_PRIOR)
        rows["scale"][chosen] = np.clip(fitted, 0.25, 2.5)


def _find(
    task: BoundRefinement,
    seen: SearchImages,
    model: Half,
    *,
    rows: dict[str, NDArray[Any]],
    prior: NDArray[np.float64],
    chosen: NDArray[np.int64],
) -> tuple[Candidates, Posterior]:
    """Search the images, and turn what is left into a posterior."""
    searcher, plan = model.searcher, task.plan
    weight = shell_sums(seen.c2, searcher.band)
    given = None
    if plan.local:
        moved = (rows["shift"][chosen] - prior) / plan.spec.crop_pixel_size
        given = neighbours(searcher, rows["pose"][chosen], moved)
    found = search(searcher, seen, lambda level: model.bound.slack(level, weight), given=given)
    last = plan.levels[-1]
    rotations = searcher.grid.rotations(last.order, found.pixel, found.turn)
    shift = searcher.shifts.centres(found.cell, last.shift_step, plan.levels[0].shift_step)
    return found, posterior(found, rotations, shift)


def _insert(
    task: BoundRefinement,
    sums: Sums,
    images: tuple[NDArray[np.complex64], SearchImages],
    spread: Posterior,
    *,
    half: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Backproject a batch by its posterior; sum up what the model leaves unexplained.

    Returns
    -------
    cross, norm : (n,) float64
        Terms of the score of every image over its posterior, for its scale.
    """
    plan, model = task.plan, task.halves[half - 1]
    members = plan.spec.band()
    centred, seen = images
    size, compared = members.size(plan.insert_radius), members.size(plan.radius)
    distinct, row = np.unique(spread.shift, axis=0, return_inverse=True)
    phases = weighted_phases(spread, shift_phases(members, distinct, count=size), row.reshape(-1))
    numerators = np.conj(seen.y[spread.image, :size]) * phases
    share = spread.pose_weight.astype(np.float32)
    weights = seen.c2[spread.image, :size] * share[:, None]
    insert_into(sums[f"map{half}"], spread.rotations, numerators, weights=weights, band=members)
    slices = project(model.reference, spread.rotations, members, count=compared)
    product = (numerators[:, :compared] * np.conj(slices)).real
    power = weights[:, :compared] * np.abs(slices) ** 2
    residual = np.square(np.abs(centred), dtype=np.float64).sum(axis=0)
    noise = model.noise[:compared].astype(np.float64)
    residual[:compared] += noise * (power - 2.0 * product).sum(axis=0, dtype=np.float64)
    sums[f"noise{half}"] += shell_sums(residual, members)
    first = np.flatnonzero(np.r_[True, spread.image[1:] != spread.image[:-1]])
    cross = np.add.reduceat(product.sum(axis=1, dtype=np.float64), first)
    norm = np.add.reduceat(power.sum(axis=1, dtype=np.float64), first)
    return cross, norm


def _count(
    figures: NDArray[np.float64],
    task: BoundRefinement,
    found: Candidates,
    spread: Posterior,
    peak: Estimate,
) -> None:
    """Add to the figures of an iteration, in place."""
    square = (peak.shift**2).sum(axis=1).sum()
    figures += (
        len(peak.pose), found.image.size, _effective(spread), spread.evidence.sum(),
        peak.spread.sum(), 0.0, 0.0, square,
    )  # fmt: skip


def _effective(spread: Posterior) -> float:
    """Sum over images the effective number of poses, 1 / sum of squares of their posterior."""
    square = np.bincount(spread.image, spread.pose_weight**2)
    return float((1.0 / square[square > 0]).sum())


def _changes(
    task: BoundRefinement,
    rows: dict[str, NDArray[Any]],
    chosen: NDArray[np.int64],
    pose: NDArray[np.float64],
    shift: NDArray[np.float64],
) -> tuple[float, float]:
    """Sum the angles (up to symmetry) and distances by which poses and shifts changed."""
    operators = symmetry_operators(task.plan.settings.symmetry)
    before = rows["pose"][chosen][:, None] @ operators
    turned = angle_between(before, pose[:, None]).min(axis=1)
    moved = np.hypot(*(shift - rows["shift"][chosen]).T)
    return float(turned.sum()), float(moved.sum())

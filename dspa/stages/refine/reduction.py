"""Refinement as a reduction: search and backprojection in ``add``, the maps in ``finish``.

The half sets are two shares of a pass, one after the other: each image sees only the reference of
its own half, its sums and its noise, and a worker never holds the sums of both. What the first half
leaves waits in a file until the second is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.dataflow.checkpoint import load
from dspa.device import like, take_rows
from dspa.geometry.symmetry import symmetric_angle, symmetry_operators
from dspa.ops.images.noise import weigh_images
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.anchor import Anchors
from dspa.ops.poses.blind import drawn_at
from dspa.ops.poses.bound import Pruning, by_bound
from dspa.ops.poses.peak import climb, find_peaks
from dspa.ops.poses.pose_grid import random_grid
from dspa.ops.poses.posterior import map_posterior
from dspa.ops.poses.search import Searchers
from dspa.ops.poses.sphere import SphereLattice
from dspa.ops.sums import grid
from dspa.ops.sums.fixed import add_exact, exact
from dspa.ops.sums.insert import insert_posterior
from dspa.stages.em.contrast import empty_contrast
from dspa.stages.em.expectation import expect
from dspa.stages.em.halves import OfHalf
from dspa.stages.em.noise import coefficient_noise, empty_noise, least_noise
from dspa.stages.em.scale import check_room, scale_of
from dspa.stages.refine.maps import settle, solve
from dspa.stages.refine.model import Figures, MapModel
from dspa.stages.refine.plan import image_memory, pass_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.ops.poses.blind import Share
    from dspa.ops.poses.cells import Candidates
    from dspa.ops.poses.posterior import Posterior
    from dspa.ops.poses.search import Searcher
    from dspa.stages.em.expectation import Expectation
    from dspa.stages.particles.chunks import ParticleBatch
    from dspa.stages.refine.plan import Plan

LEAST_SHARE = 0.1  # of an even share of the images: the least that a map expects


@dataclass(frozen=True, eq=False)
class Refinement(OfHalf):
    """Reduction of one iteration (see ``dspa.dataflow.reduction``).

    Attributes
    ----------
    plan : Plan
    """

    plan: Plan

    def bind(self, model: Model, items: int = 1 << 20) -> BoundRefinement:
        """Make the reference of the half ready."""
        plan = self.plan
        lattice = SphereLattice(
            plan.spec.band(),
            random_grid(plan.seeds),
            plan.levels,
            plan.shifts,
            symmetry_operators(plan.settings.symmetry),
        )
        known = MapModel.read(model)
        own = known.of_half(self.half)
        # All maps are members of one set: every image sees every map.
        searchers = Searchers(
            known.reference[self.half - 1][None],
            lattice,
            class_prior(own["occupancy"]),
            profile=plan.profile,
            local=plan.local,
        )
        most = (known.classes * level.poses for level in plan.levels)
        pruning = by_bound(most, odds=plan.odds, whole=plan.whole(lattice), cells=plan.cells)
        scale = scale_of(self.total, items, least_noise(own))
        return BoundRefinement(self, known, lattice, searchers, pruning, scale)

    def bytes_per_item(self) -> int:
        """Memory per image: its bands, and its candidates."""
        return image_memory(self.plan)

    def bytes_of_sums(self) -> int:
        """Memory of the sums of the half, of the model, and of what searches look at."""
        return pass_bytes(self.plan)


def class_prior(occupancy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-prior of each map: its share of the images, but never so little that none can come."""
    share = np.maximum(occupancy, LEAST_SHARE / occupancy.size)
    return np.asarray(np.log(share / share.sum()))


@dataclass(frozen=True, eq=False)
class BoundRefinement:
    """An iteration with its references.

    Attributes
    ----------
    task : Refinement
    model : MapModel
        Of the iteration before.
    lattice : SphereLattice
    searchers : Searchers
        One, of the references of the half: its members.
    pruning : Pruning
    scale : float
        Of the sums in fixed point.
    """

    task: Refinement
    model: MapModel
    lattice: SphereLattice
    searchers: Searchers
    pruning: Pruning
    scale: float

    @property
    def plan(self) -> Plan:
        """Of the iteration."""
        return self.task.plan

    def start(self) -> Sums:
        """Return empty sums; the map is made where the first images lie."""
        return empty_noise(self.plan) | {
            "contrast": exact(empty_contrast().shape),
            "occupancy": exact((self.model.classes,)),
            "figures": exact((len(Figures._fields),)),
            "largest": exact(),
        }

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Search the poses of a batch, add its images to the maps."""
        count = len(batch)
        rows: dict[str, NDArray[Any]] = {
            "pose": np.array(batch.state["pose"], np.float64),
            "shift": np.array(batch.state["shift"], np.float64),
            "scale": np.ones(count),
            "log_likelihood": np.full(count, np.nan),
            "probability": np.full(count, np.nan),
            "spread": np.full(count, np.nan),
        }
        if self.model.classes > 1:
            rows["class_index"] = np.full(count, -1, np.int32)
            rows["class_posterior"] = np.full((count, self.model.classes), np.nan, np.float32)
        chosen = np.flatnonzero(batch.valid)
        if chosen.size:
            self._add_valid(sums, rows, batch, chosen=chosen)
        return rows

    def _add_valid(
        self,
        sums: Sums,
        rows: dict[str, NDArray[Any]],
        batch: ParticleBatch,
        *,
        chosen: NDArray[np.int64],
    ) -> None:
        """Add the images that can be used; ``rows`` and ``sums`` are changed."""
        plan, model = self.plan, self.model.of_half(self.task.half)
        pixel_size = plan.spec.crop_pixel_size
        prior = batch.state["prior_shift"][chosen]
        y, c2 = self.weighted(batch, chosen, prior / pixel_size)
        searcher, given = self.searchers.beside(y)[0], None
        if plan.local:
            moved = (rows["shift"][chosen] - prior) / pixel_size
            searcher, given = self._near(searcher, batch, chosen, rows["pose"][chosen], moved)
        made = expect(
            sums,
            (batch, chosen),
            plan=plan,
            model=model,
            searcher=searcher,
            pruning=self.pruning,
            y=y,
            c2=c2,
            given=given,
            judge=map_posterior,
        )
        found = made.found
        peak = find_peaks(found, self.lattice)
        self._insert(sums, made, batch.indices[chosen])
        changed = self._sort(sums, rows, batch, chosen=chosen, found=found)
        pose, moved = peak.pose, peak.shift
        if not plan.profile:  # without a grey scale there is no score to climb
            member = made.seen.cells.member[made.top]
            pose = climb(searcher, pose, moved, member=member, y=made.y, c2=made.c2)
        if searcher.anchors is not None:
            pose, moved = searcher.anchors.held(pose, moved)
        shift = prior + moved * pixel_size
        turned = symmetric_angle(rows["pose"][chosen], pose, plan.settings.symmetry)
        figures = Figures(
            images=chosen.size,
            candidates=made.seen.scored,
            effective=peak.effective.sum(),
            log_likelihood=found.log_likelihood.sum(dtype=np.float64),
            spread=peak.spread.sum(),
            turned=turned.sum(),
            moved=np.hypot(*(shift - rows["shift"][chosen]).T).sum(),
            shift2=(peak.shift**2).sum(),
            limited=made.seen.capped,
            changed=changed,
        )
        add_exact(sums["figures"], figures)
        rows["pose"][chosen], rows["shift"][chosen] = pose, shift
        rows["log_likelihood"][chosen] = found.log_likelihood
        rows["probability"][chosen], rows["spread"][chosen] = peak.probability, peak.spread
        rows["scale"][chosen] = made.scales[made.top]

    def _near(
        self,
        searcher: Searcher,
        batch: ParticleBatch,
        chosen: NDArray[np.int64],
        poses: NDArray[np.float64],
        moved: NDArray[np.float64],
    ) -> tuple[Searcher, Candidates]:
        """Begin a search near known poses; a prior says how far from those that were given."""
        settings = self.plan.settings
        if settings.pose_prior is None:
            return searcher, self.lattice.around(poses, moved)
        prior = settings.pose_prior
        given = batch.state["prior_pose"][chosen]
        anchors = Anchors(given, prior.sigma, prior.extent, settings.reach)
        wide = self.plan.wide
        cells = anchors.cells(self.lattice) if wide else self.lattice.around(poses, moved)
        return replace(searcher, anchors=anchors), cells

    def _sort(
        self,
        sums: Sums,
        rows: dict[str, NDArray[Any]],
        batch: ParticleBatch,
        *,
        chosen: NDArray[np.int64],
        found: Posterior,
    ) -> int:
        """Say which map each image belongs to; count those that belonged to another."""
        members = found.members(self.model.classes)
        add_exact(sums["occupancy"], members.sum(axis=0))
        if self.model.classes == 1:
            return 0
        best = found.cells.member[found.best]
        rows["class_index"][chosen], rows["class_posterior"][chosen] = best, members
        return int(np.sum(best != batch.state["class_index"][chosen]))

    def weighted(
        self, batch: ParticleBatch, chosen: NDArray[np.int64], prior: NDArray[np.float64]
    ) -> tuple[Any, Any]:
        """Y and C2 of images, moved so that their prior shift (pixels) is at the origin."""
        model = self.model.of_half(self.task.half)
        images, ctf = take_rows(batch.images, chosen), take_rows(batch.ctf, chosen)
        centred = images * shift_phases(batch.band, like(prior, reference=images))
        return weigh_images(centred, ctf, coefficient_noise(model, batch, chosen))

    def _insert(self, sums: Sums, made: Expectation, indices: NDArray[np.int64]) -> None:
        """Backproject a batch."""
        plan, band, classes = self.plan, self.lattice.band, self.model.classes
        if "map" not in sums:
            where = 2 * plan.insert_radius + 1
            sums["map"] = grid.zeros((classes,), where, dims=3, reference=made.y, fixed=True)
        # A lattice of places is spread evenly over the maps, whichever images a batch holds.
        turn = plan.settings.seed + plan.iteration
        scattered = (drawn_at(indices, turn) * classes).astype(np.int32)

        def into(share: Share) -> tuple[Any, ...]:
            target = scattered[share.cells.image] if plan.scatter else share.cells.member
            return sums["map"], target, share.cells, share.weight

        insert_posterior(
            made.found,
            into,
            lattice=self.lattice,
            count=band.size(plan.insert_radius),
            y=made.y,
            c2=made.c2,
            scale=self.scale,
            shares=made.shares,
        )

    def finish(self, sums: Sums) -> Model:
        """Leave what is known of the first half; with the second, make the next references."""
        task, plan = self.task, self.plan
        check_room(task, sums, self.scale)
        self.searchers.forget()
        own = settle(plan, sums, self.scale)
        if task.before is None:
            return own
        return solve(plan, load(task.before), own, self.model).arrays()
